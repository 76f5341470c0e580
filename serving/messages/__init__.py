"""What clients send and get: bytes to checked images, heads to bytes, and the metadata that describe both."""
