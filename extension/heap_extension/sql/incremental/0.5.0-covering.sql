ALTER TABLE heap.event_definition ADD COLUMN covering text[] NOT NULL DEFAULT '{}';
COMMENT ON COLUMN heap.event_definition.covering IS
'Columns of the events that the indexes have beside the key: heap.cover_event sets them';
