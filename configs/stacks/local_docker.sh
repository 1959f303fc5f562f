# The stack `docker`: every step in a container of this machine, which needs nothing but Docker; artifacts in S3, curves in MLflow.
#   sh configs/stacks/local_docker.sh && posttrain stack check docker
# The image and the remote parts are those of a cluster, so it is the place to try them. It cannot run schedules.
# Before: `zenml login` to a server that containers can reach. The environment tells it where things are:
#   S3_PATH                     s3://bucket/folder, for artifacts and training checkpoints
#   AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION
#   AWS_ENDPOINT_URL            of MinIO, Ceph and friends, as containers reach it; leave it out for AWS
#   MLFLOW_TRACKING_URI, MLFLOW_TRACKING_USERNAME, MLFLOW_TRACKING_PASSWORD
set -eu

# What steps find in their environment: boto3 reads it for the data, MLflow for its server. HF_TOKEN may be added to it.
zenml secret create posttrain-docker --AWS_ACCESS_KEY_ID="$AWS_ACCESS_KEY_ID" \
    --AWS_SECRET_ACCESS_KEY="$AWS_SECRET_ACCESS_KEY" \
    --AWS_REGION="$AWS_REGION" ${AWS_ENDPOINT_URL:+--AWS_ENDPOINT_URL="$AWS_ENDPOINT_URL"} \
    --MLFLOW_TRACKING_USERNAME="$MLFLOW_TRACKING_USERNAME" --MLFLOW_TRACKING_PASSWORD="$MLFLOW_TRACKING_PASSWORD"

# The store's own copy of the keys: it is read and written outside of steps too.
zenml secret create posttrain-docker-s3 --aws_access_key_id="$AWS_ACCESS_KEY_ID" --aws_secret_access_key="$AWS_SECRET_ACCESS_KEY"

zenml artifact-store register posttrain-docker-s3 --flavor=s3 --path="$S3_PATH" --authentication_secret=posttrain-docker-s3 \
    --client_kwargs="{\"region_name\": \"$AWS_REGION\"${AWS_ENDPOINT_URL:+, \"endpoint_url\": \"$AWS_ENDPOINT_URL\"}}"

# A server that asks for no password takes any: ZenML wants one.
zenml experiment-tracker register posttrain-docker-mlflow --flavor=mlflow --tracking_uri="$MLFLOW_TRACKING_URI" \
    --tracking_username='{{posttrain-docker.MLFLOW_TRACKING_USERNAME}}' \
    --tracking_password='{{posttrain-docker.MLFLOW_TRACKING_PASSWORD}}'

zenml image-builder register posttrain-docker-build --flavor=local --use_subprocess_call=true

zenml orchestrator register posttrain-docker --flavor=local_docker

zenml stack register docker -o posttrain-docker -a posttrain-docker-s3 -e posttrain-docker-mlflow \
    -i posttrain-docker-build --secret=posttrain-docker
