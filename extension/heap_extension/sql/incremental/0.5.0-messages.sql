COMMENT ON COLUMN heap.ingest_offset.stored IS
'Messages read from the log so far, dead ones among them; one may hold several events';
COMMENT ON COLUMN heap.ingest_offset.dead IS 'Events and whole messages that could not be stored and went to the dead letters';
