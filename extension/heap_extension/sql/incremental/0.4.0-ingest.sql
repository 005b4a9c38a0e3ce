CREATE TABLE heap.ingest_offset (
    cluster text NOT NULL,
    topic text NOT NULL,
    partition int NOT NULL,
    next_offset bigint NOT NULL CHECK (next_offset >= 0),
    stored bigint NOT NULL DEFAULT 0,
    dead bigint NOT NULL DEFAULT 0,
    stored_at timestamptz,
    PRIMARY KEY (cluster, topic, partition)
);
COMMENT ON TABLE heap.ingest_offset IS
'How far the log is in the tables: changed in the transaction that stores a batch, so that each message is stored exactly once';
COMMENT ON COLUMN heap.ingest_offset.cluster IS 'The id of the Kafka cluster: another has another log';
COMMENT ON COLUMN heap.ingest_offset.next_offset IS
'The first message not stored yet. Whoever stores a batch moves it from where the batch begins, or else stores nothing: another sink did';
COMMENT ON COLUMN heap.ingest_offset.stored IS 'Messages read from the log so far, dead ones among them';
COMMENT ON COLUMN heap.ingest_offset.dead IS 'Messages that could not be stored and went to the dead letters';
COMMENT ON COLUMN heap.ingest_offset.stored_at IS 'When the last batch was stored';
SELECT pg_catalog.pg_extension_config_dump('heap.ingest_offset', '');
