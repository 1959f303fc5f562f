"""Against real servers: S3, PostgreSQL, MLflow and ZenML (test_services), and a Kubernetes cluster (test_kubernetes)."""
