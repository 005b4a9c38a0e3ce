COMMENT ON COLUMN heap.event_definition.last_used IS
'When heap maintain last saw that its indexes were scanned, or heard that somebody asked about it';
COMMENT ON COLUMN heap.settings.drop_unused_after IS
'Indexes of events that nobody asked about for so long, which is days, are dropped, and built again when somebody asks; null keeps them';
