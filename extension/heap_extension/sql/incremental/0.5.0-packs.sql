ALTER TABLE heap.settings ADD COLUMN pack_after interval DEFAULT '7 days' CHECK (pack_after >= '0');
ALTER TABLE heap.settings ADD COLUMN pack_above int NOT NULL DEFAULT 1000 CHECK (pack_above > 0);
ALTER TABLE heap.settings ADD COLUMN pack_any boolean NOT NULL DEFAULT true;
COMMENT ON COLUMN heap.settings.pack_after IS
'How long after its month a partition that nobody writes to gets packs; null: never, and those there are go';
COMMENT ON COLUMN heap.settings.pack_above IS 'An event with at least so many matches in a partition of a shard gets a pack there';
COMMENT ON COLUMN heap.settings.pack_any IS 'Whether all events of a partition get a pack, too: for analyses of any event';
