CREATE TABLE heap.settings (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    index_builds text NOT NULL DEFAULT 'auto' CHECK (index_builds IN ('auto', 'statement', 'maintain')),
    builds_per_node int NOT NULL DEFAULT 2 CHECK (builds_per_node BETWEEN 1 AND 64),
    max_active_queries int NOT NULL DEFAULT 32 CHECK (max_active_queries > 0),
    lock_timeout interval NOT NULL DEFAULT '500 ms' CHECK (lock_timeout BETWEEN '10 ms' AND '1 minute'),
    build_patience interval NOT NULL DEFAULT '10 minutes' CHECK (build_patience BETWEEN '10 ms' AND '24 days'),
    months_ahead int NOT NULL DEFAULT 3 CHECK (months_ahead BETWEEN 1 AND 120),
    vacuum_below double precision NOT NULL DEFAULT 0.9 CHECK (vacuum_below BETWEEN 0 AND 1),
    reindex_above double precision NOT NULL DEFAULT 3 CHECK (reindex_above > 1),
    drop_unused_after interval CHECK (drop_unused_after > '0')
);
INSERT INTO heap.settings DEFAULT VALUES;
COMMENT ON TABLE heap.settings IS 'How indexes are kept, by heap maintain and by definitions. One row: UPDATE heap.settings SET ...';
COMMENT ON COLUMN heap.settings.only_row IS 'Keeps the table at one row';
COMMENT ON COLUMN heap.settings.index_builds IS
'Who builds a definition''s indexes: its own statement, heap maintain, or (auto) the latter when it runs';
COMMENT ON COLUMN heap.settings.builds_per_node IS 'Indexes built at once on one node, at most';
COMMENT ON COLUMN heap.settings.max_active_queries IS 'No build begins on a node that runs this many statements';
COMMENT ON COLUMN heap.settings.lock_timeout IS 'For how long maintenance may hold back writes, and so wait for a lock';
COMMENT ON COLUMN heap.settings.build_patience IS
'For how long a build waits for transactions that were open before it, until it makes room for others and is tried again';
COMMENT ON COLUMN heap.settings.months_ahead IS 'Monthly partitions made ahead of time';
COMMENT ON COLUMN heap.settings.vacuum_below IS
'A partition that changed is vacuumed when less than this share of its pages can be skipped by index-only scans';
COMMENT ON COLUMN heap.settings.reindex_above IS 'An index of this many times the size of its entries is built anew';
COMMENT ON COLUMN heap.settings.drop_unused_after IS
'Indexes of events that nobody asked about for so long are dropped, and built again when somebody asks; null keeps them';
SELECT pg_catalog.pg_extension_config_dump('heap.settings', '');
GRANT SELECT ON heap.settings TO PUBLIC;

ALTER TABLE heap.event_definition ADD COLUMN dormant boolean NOT NULL DEFAULT false;
ALTER TABLE heap.event_definition ADD COLUMN scans bigint NOT NULL DEFAULT 0;
ALTER TABLE heap.event_definition ADD COLUMN last_used timestamptz NOT NULL DEFAULT now();
COMMENT ON COLUMN heap.event_definition.dormant IS 'Unused for long: without indexes until somebody asks about it';
COMMENT ON COLUMN heap.event_definition.scans IS 'Scans of its indexes when heap maintain last counted them';
COMMENT ON COLUMN heap.event_definition.last_used IS 'When heap maintain last saw that its indexes were scanned';

DROP VIEW IF EXISTS heap.events;
DROP FUNCTION IF EXISTS heap._index_size(regclass);
