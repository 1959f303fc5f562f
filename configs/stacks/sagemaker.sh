# The stack `sagemaker`: Amazon SageMaker, artifacts in S3, images in ECR, curves in MLflow. Copy, change what differs, run it once:
#   sh configs/stacks/sagemaker.sh && posttrain stack check sagemaker
# Before: `zenml login` to a server that SageMaker can reach, credentials that boto3 finds, `docker login` to ECR, and in ECR a
# repository named zenml. Jobs act as the execution role, so no key of AWS is stored. Amazon's SDK sends telemetry: sagemaker-sdk.yaml.
#   S3_PATH                     s3://bucket/folder, for artifacts and training checkpoints
#   AWS_REGION
#   MLFLOW_TRACKING_URI, MLFLOW_TRACKING_USERNAME, MLFLOW_TRACKING_PASSWORD
#   REGISTRY                    ACCOUNT.dkr.ecr.REGION.amazonaws.com
#   SAGEMAKER_EXECUTION_ROLE    its ARN: SageMaker, S3 and ECR
#   SAGEMAKER_SCHEDULER_ROLE    its ARN: EventBridge assumes it, to start pipelines on schedule
set -eu

# What steps find in their environment. HF_TOKEN may be added to it.
zenml secret create posttrain-sagemaker --AWS_REGION="$AWS_REGION" \
    --MLFLOW_TRACKING_USERNAME="$MLFLOW_TRACKING_USERNAME" --MLFLOW_TRACKING_PASSWORD="$MLFLOW_TRACKING_PASSWORD"

zenml artifact-store register posttrain-sagemaker-s3 --flavor=s3 --path="$S3_PATH"

# A server that asks for no password takes any: ZenML wants one.
zenml experiment-tracker register posttrain-sagemaker-mlflow --flavor=mlflow --tracking_uri="$MLFLOW_TRACKING_URI" \
    --tracking_username='{{posttrain-sagemaker.MLFLOW_TRACKING_USERNAME}}' \
    --tracking_password='{{posttrain-sagemaker.MLFLOW_TRACKING_PASSWORD}}'

zenml container-registry register posttrain-ecr --flavor=aws --uri="$REGISTRY"

zenml image-builder register posttrain-sagemaker-docker --flavor=local --use_subprocess_call=true

zenml orchestrator register posttrain-sagemaker --flavor=sagemaker --region="$AWS_REGION" \
    --execution_role="$SAGEMAKER_EXECUTION_ROLE" --scheduler_role="$SAGEMAKER_SCHEDULER_ROLE"

zenml stack register sagemaker -o posttrain-sagemaker -a posttrain-sagemaker-s3 -e posttrain-sagemaker-mlflow \
    -c posttrain-ecr -i posttrain-sagemaker-docker --secret=posttrain-sagemaker
