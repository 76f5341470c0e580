"""What operators read: one line a request, counters for Prometheus, and how far images are from the training."""
