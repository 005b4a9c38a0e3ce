"""The capture server: HTTP requests in, messages acknowledged by Kafka out, and only then an answer."""
