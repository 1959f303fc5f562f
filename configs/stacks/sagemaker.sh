# Registers the stack `sagemaker`: Amazon SageMaker, artifacts in S3, images in ECR, metrics in MLflow. Copy, adapt and run it once:
#   sh configs/stacks/sagemaker.sh && posttrain stack check sagemaker
# It needs `zenml login` to a server that SageMaker can reach, credentials that boto3 finds, `docker login` to ECR, and a repository
# named zenml in ECR. Jobs use the execution role, so no AWS key is stored. sagemaker-sdk.yaml turns off the telemetry of Amazon's SDK.
#   S3_PATH                     s3://bucket/folder, for artifacts and training checkpoints
#   AWS_REGION
#   MLFLOW_TRACKING_URI, MLFLOW_TRACKING_USERNAME, MLFLOW_TRACKING_PASSWORD
#   REGISTRY                    ACCOUNT.dkr.ecr.REGION.amazonaws.com
#   SAGEMAKER_EXECUTION_ROLE    its ARN; it may use SageMaker, S3 and ECR
#   SAGEMAKER_SCHEDULER_ROLE    its ARN; EventBridge assumes it to start scheduled pipelines
set -eu

# The environment variables of the steps. You can add HF_TOKEN.
zenml secret create posttrain-sagemaker --AWS_REGION="$AWS_REGION" \
    --MLFLOW_TRACKING_USERNAME="$MLFLOW_TRACKING_USERNAME" --MLFLOW_TRACKING_PASSWORD="$MLFLOW_TRACKING_PASSWORD"

zenml artifact-store register posttrain-sagemaker-s3 --flavor=s3 --path="$S3_PATH"

# ZenML requires a user and a password; a server without authentication ignores them.
zenml experiment-tracker register posttrain-sagemaker-mlflow --flavor=mlflow --tracking_uri="$MLFLOW_TRACKING_URI" \
    --tracking_username='{{posttrain-sagemaker.MLFLOW_TRACKING_USERNAME}}' \
    --tracking_password='{{posttrain-sagemaker.MLFLOW_TRACKING_PASSWORD}}'

zenml container-registry register posttrain-ecr --flavor=aws --uri="$REGISTRY"

zenml image-builder register posttrain-sagemaker-docker --flavor=local --use_subprocess_call=true

zenml orchestrator register posttrain-sagemaker --flavor=sagemaker --region="$AWS_REGION" \
    --execution_role="$SAGEMAKER_EXECUTION_ROLE" --scheduler_role="$SAGEMAKER_SCHEDULER_ROLE"

zenml stack register sagemaker -o posttrain-sagemaker -a posttrain-sagemaker-s3 -e posttrain-sagemaker-mlflow \
    -c posttrain-ecr -i posttrain-sagemaker-docker --secret=posttrain-sagemaker
