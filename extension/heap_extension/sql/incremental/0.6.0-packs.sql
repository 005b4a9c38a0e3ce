ALTER TABLE heap.settings ADD COLUMN pack_every interval DEFAULT '1 hour' CHECK (pack_every > '0');
COMMENT ON COLUMN heap.settings.pack_every IS
'How often a partition that is still written to is vacuumed, and its packs are made anew, at most; null: it has none';
COMMENT ON COLUMN heap.settings.pack_after IS
'How long after its month a partition is taken to be over: it gets packs once nobody writes there; null: never, and those there are go';

DO $$
DECLARE
    app name;
BEGIN
    FOR app IN SELECT a.name FROM heap.app AS a ORDER BY 1 LOOP
        IF to_regclass(format('%I.packs', app)) IS NOT NULL THEN
            EXECUTE format('ALTER TABLE %I.packs ADD COLUMN IF NOT EXISTS pages bytea', app);
            EXECUTE format('ALTER TABLE %I.packs ALTER pages SET STORAGE EXTERNAL', app);
            EXECUTE format('COMMENT ON COLUMN %I.packs.pages IS %L', app,
                'The page of the table that each event is on; null where no row of the partition came or went when it was made');
        END IF;
    END LOOP;
END
$$;
