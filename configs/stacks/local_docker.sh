# Registers the stack `docker`: each step runs in a Docker container on this machine; artifacts in S3, metrics in MLflow.
#   sh configs/stacks/local_docker.sh && posttrain stack check docker
# Use it to try the image and the remote services before a cluster. It cannot run schedules.
# It needs `zenml login` to a server that containers can reach, and these environment variables:
#   S3_PATH                     s3://bucket/folder, for artifacts and training checkpoints
#   AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION
#   AWS_ENDPOINT_URL            address of another S3 server (MinIO, Ceph), as containers reach it; unset for AWS
#   MLFLOW_TRACKING_URI, MLFLOW_TRACKING_USERNAME, MLFLOW_TRACKING_PASSWORD
set -eu

# The environment variables of the steps: boto3 needs them for the data, MLflow for its server. You can add HF_TOKEN.
zenml secret create posttrain-docker --AWS_ACCESS_KEY_ID="$AWS_ACCESS_KEY_ID" \
    --AWS_SECRET_ACCESS_KEY="$AWS_SECRET_ACCESS_KEY" \
    --AWS_REGION="$AWS_REGION" ${AWS_ENDPOINT_URL:+--AWS_ENDPOINT_URL="$AWS_ENDPOINT_URL"} \
    --MLFLOW_TRACKING_USERNAME="$MLFLOW_TRACKING_USERNAME" --MLFLOW_TRACKING_PASSWORD="$MLFLOW_TRACKING_PASSWORD"

# The artifact store has the keys separately, as it is also used outside of steps.
zenml secret create posttrain-docker-s3 --aws_access_key_id="$AWS_ACCESS_KEY_ID" --aws_secret_access_key="$AWS_SECRET_ACCESS_KEY"

zenml artifact-store register posttrain-docker-s3 --flavor=s3 --path="$S3_PATH" --authentication_secret=posttrain-docker-s3 \
    --client_kwargs="{\"region_name\": \"$AWS_REGION\"${AWS_ENDPOINT_URL:+, \"endpoint_url\": \"$AWS_ENDPOINT_URL\"}}"

# ZenML requires a user and a password; a server without authentication ignores them.
zenml experiment-tracker register posttrain-docker-mlflow --flavor=mlflow --tracking_uri="$MLFLOW_TRACKING_URI" \
    --tracking_username='{{posttrain-docker.MLFLOW_TRACKING_USERNAME}}' \
    --tracking_password='{{posttrain-docker.MLFLOW_TRACKING_PASSWORD}}'

zenml image-builder register posttrain-docker-build --flavor=local --use_subprocess_call=true

zenml orchestrator register posttrain-docker --flavor=local_docker

zenml stack register docker -o posttrain-docker -a posttrain-docker-s3 -e posttrain-docker-mlflow \
    -i posttrain-docker-build --secret=posttrain-docker
