"""From the app to the database with nothing lost: capture server -> Kafka -> sink, and replay of the log."""
