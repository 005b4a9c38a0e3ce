CREATE TABLE heap.write_key (
    key text PRIMARY KEY,
    app text NOT NULL REFERENCES heap.app (name) ON DELETE CASCADE,
    note text,
    keep_address boolean NOT NULL DEFAULT true,
    events_per_second int CHECK (events_per_second > 0),
    created_at timestamptz NOT NULL DEFAULT now(),
    revoked_at timestamptz
);
COMMENT ON TABLE heap.write_key IS
'What lets an app''s pages and programs send events, and nothing else. A key is seen by whoever looks at the page; heap ingest keys makes and revokes them';
COMMENT ON COLUMN heap.write_key.note IS 'What the key is for';
COMMENT ON COLUMN heap.write_key.keep_address IS 'Whether events keep the client''s IP address, as far as Kafka';
COMMENT ON COLUMN heap.write_key.events_per_second IS 'How many events may come with it, per process that takes them; null: as many as the server''s default says';
COMMENT ON COLUMN heap.write_key.revoked_at IS 'From when on nothing is taken with it';
SELECT pg_catalog.pg_extension_config_dump('heap.write_key', '');
