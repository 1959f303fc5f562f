# The stack `gpu`: Kubernetes with GPUs, artifacts in S3, curves in MLflow. Copy, change what differs, and run it once:
#   sh configs/stacks/kubernetes.sh && posttrain stack check gpu
# Before: `zenml login` to a server that the cluster can reach, a kubectl context, and `docker login` to the registry.
# The environment tells it where things are, so that no secret stands in a file:
#   S3_PATH                     s3://bucket/folder, for artifacts and training checkpoints
#   AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION
#   AWS_ENDPOINT_URL            of MinIO, Ceph and friends, as pods reach it; leave it out for AWS
#   MLFLOW_TRACKING_URI, MLFLOW_TRACKING_USERNAME, MLFLOW_TRACKING_PASSWORD
#   REGISTRY                    host/folder that images are pushed to, and nodes pull from
#   KUBERNETES_CONTEXT          of kubectl; the namespace is KUBERNETES_NAMESPACE, or zenml, and must exist
set -eu

# What steps find in their environment: boto3 reads it for the data, MLflow for its server. HF_TOKEN may be added to it.
zenml secret create posttrain --AWS_ACCESS_KEY_ID="$AWS_ACCESS_KEY_ID" --AWS_SECRET_ACCESS_KEY="$AWS_SECRET_ACCESS_KEY" \
    --AWS_REGION="$AWS_REGION" ${AWS_ENDPOINT_URL:+--AWS_ENDPOINT_URL="$AWS_ENDPOINT_URL"} \
    --MLFLOW_TRACKING_USERNAME="$MLFLOW_TRACKING_USERNAME" --MLFLOW_TRACKING_PASSWORD="$MLFLOW_TRACKING_PASSWORD"

# The store's own copy of the keys: it is read and written outside of steps too.
zenml secret create posttrain-s3 --aws_access_key_id="$AWS_ACCESS_KEY_ID" --aws_secret_access_key="$AWS_SECRET_ACCESS_KEY"

zenml artifact-store register posttrain-s3 --flavor=s3 --path="$S3_PATH" --authentication_secret=posttrain-s3 \
    --client_kwargs="{\"region_name\": \"$AWS_REGION\"${AWS_ENDPOINT_URL:+, \"endpoint_url\": \"$AWS_ENDPOINT_URL\"}}"

# A server that asks for no password takes any: ZenML wants one.
zenml experiment-tracker register posttrain-mlflow --flavor=mlflow --tracking_uri="$MLFLOW_TRACKING_URI" \
    --tracking_username='{{posttrain.MLFLOW_TRACKING_USERNAME}}' --tracking_password='{{posttrain.MLFLOW_TRACKING_PASSWORD}}'

zenml container-registry register posttrain-registry --flavor=default --uri="$REGISTRY"

# Builds here, with the docker command; where there is none, flavor kaniko builds on the cluster.
zenml image-builder register posttrain-docker --flavor=local --use_subprocess_call=true

# The token of a run is kept in a Kubernetes secret, not in the pod's own description.
zenml orchestrator register posttrain-kubernetes --flavor=kubernetes --kubernetes_context="$KUBERNETES_CONTEXT" \
    --kubernetes_namespace="${KUBERNETES_NAMESPACE:-zenml}" --pass_zenml_token_as_secret=true

zenml stack register gpu -o posttrain-kubernetes -a posttrain-s3 -e posttrain-mlflow -c posttrain-registry \
    -i posttrain-docker --secret=posttrain
