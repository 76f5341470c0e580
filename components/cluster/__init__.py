"""What a step asks of Kubernetes: a server for a bundle (KServe), a training on several nodes (Kubeflow Trainer)."""
