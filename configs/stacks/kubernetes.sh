# Registers the stack `gpu`: Kubernetes with GPUs, artifacts in S3, metrics in MLflow. Copy this file, adapt it and run it once:
#   sh configs/stacks/kubernetes.sh && posttrain stack check gpu
# It needs `zenml login` to a server that the cluster can reach, a kubectl context, and `docker login` to the registry.
# It reads addresses and secrets from environment variables, so that no file holds a secret:
#   S3_PATH                     s3://bucket/folder, for artifacts and training checkpoints
#   AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION
#   AWS_ENDPOINT_URL            address of another S3 server (MinIO, Ceph), as pods reach it; unset for AWS
#   MLFLOW_TRACKING_URI, MLFLOW_TRACKING_USERNAME, MLFLOW_TRACKING_PASSWORD
#   REGISTRY                    host/folder that images are pushed to and nodes pull from
#   KUBERNETES_CONTEXT          context of kubectl; the namespace KUBERNETES_NAMESPACE (default: zenml) must exist
set -eu

# The environment variables of the steps: boto3 needs them for the data, MLflow for its server. You can add HF_TOKEN.
zenml secret create posttrain --AWS_ACCESS_KEY_ID="$AWS_ACCESS_KEY_ID" --AWS_SECRET_ACCESS_KEY="$AWS_SECRET_ACCESS_KEY" \
    --AWS_REGION="$AWS_REGION" ${AWS_ENDPOINT_URL:+--AWS_ENDPOINT_URL="$AWS_ENDPOINT_URL"} \
    --MLFLOW_TRACKING_USERNAME="$MLFLOW_TRACKING_USERNAME" --MLFLOW_TRACKING_PASSWORD="$MLFLOW_TRACKING_PASSWORD"

# The artifact store has the keys separately, as it is also used outside of steps.
zenml secret create posttrain-s3 --aws_access_key_id="$AWS_ACCESS_KEY_ID" --aws_secret_access_key="$AWS_SECRET_ACCESS_KEY"

zenml artifact-store register posttrain-s3 --flavor=s3 --path="$S3_PATH" --authentication_secret=posttrain-s3 \
    --client_kwargs="{\"region_name\": \"$AWS_REGION\"${AWS_ENDPOINT_URL:+, \"endpoint_url\": \"$AWS_ENDPOINT_URL\"}}"

# ZenML requires a user and a password; a server without authentication ignores them.
zenml experiment-tracker register posttrain-mlflow --flavor=mlflow --tracking_uri="$MLFLOW_TRACKING_URI" \
    --tracking_username='{{posttrain.MLFLOW_TRACKING_USERNAME}}' --tracking_password='{{posttrain.MLFLOW_TRACKING_PASSWORD}}'

zenml container-registry register posttrain-registry --flavor=default --uri="$REGISTRY"

# Builds on this machine with the docker command. Without docker, use the flavor kaniko, which builds on the cluster.
zenml image-builder register posttrain-docker --flavor=local --use_subprocess_call=true

# Keeps a run's token in a Kubernetes secret instead of the pod's specification.
zenml orchestrator register posttrain-kubernetes --flavor=kubernetes --kubernetes_context="$KUBERNETES_CONTEXT" \
    --kubernetes_namespace="${KUBERNETES_NAMESPACE:-zenml}" --pass_zenml_token_as_secret=true

zenml stack register gpu -o posttrain-kubernetes -a posttrain-s3 -e posttrain-mlflow -c posttrain-registry \
    -i posttrain-docker --secret=posttrain
