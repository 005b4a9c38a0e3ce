CREATE TABLE heap.user_alias (
    app text NOT NULL REFERENCES heap.app (name) ON DELETE CASCADE,
    user_id bigint NOT NULL,
    merged_into bigint NOT NULL CHECK (merged_into <> user_id),
    merged_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (app, user_id)
);
CREATE INDEX user_alias_merged_into ON heap.user_alias (app, merged_into);
COMMENT ON TABLE heap.user_alias IS 'Users that were merged: whoever writes an event of one writes it for the user it became';
COMMENT ON COLUMN heap.user_alias.user_id IS 'The user that ended';
COMMENT ON COLUMN heap.user_alias.merged_into IS 'The user it became, who has not ended';
COMMENT ON COLUMN heap.user_alias.merged_at IS 'When; events written for the old user within a day after it move over, too';

CREATE TABLE heap.user_merge (
    app text NOT NULL REFERENCES heap.app (name) ON DELETE CASCADE,
    user_id bigint NOT NULL,
    merged_into bigint NOT NULL CHECK (merged_into <> user_id),
    batch bigint,
    is_moved boolean NOT NULL DEFAULT FALSE,
    requested_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (app, user_id)
);
CREATE INDEX user_merge_merged_into ON heap.user_merge (app, merged_into);
COMMENT ON TABLE heap.user_merge IS 'Merges of users between shards, from the request until heap maintain has done them; the order of heap maintain''s work';
COMMENT ON COLUMN heap.user_merge.user_id IS 'The user that ends';
COMMENT ON COLUMN heap.user_merge.merged_into IS 'The user it becomes';
COMMENT ON COLUMN heap.user_merge.batch IS
'The merges that are under way together, one batch an app: the number of their copied events, negative that of the originals; null while it waits';
COMMENT ON COLUMN heap.user_merge.is_moved IS 'Whether queries read the copies, and no longer the originals';
COMMENT ON COLUMN heap.user_merge.requested_at IS 'When it was asked for';

CREATE TABLE heap.erased_user (
    app text NOT NULL REFERENCES heap.app (name) ON DELETE CASCADE,
    user_id bigint NOT NULL,
    erased_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (app, user_id)
);
COMMENT ON TABLE heap.erased_user IS 'Users that were erased: their events up to then are not taken in again, such as from a replayed log';
COMMENT ON COLUMN heap.erased_user.user_id IS 'The user, or one that had been merged into it; nothing else of them is kept';
COMMENT ON COLUMN heap.erased_user.erased_at IS 'When; events after it are of somebody new';

SELECT pg_catalog.pg_extension_config_dump('heap.user_alias', '');
SELECT pg_catalog.pg_extension_config_dump('heap.user_merge', '');
SELECT pg_catalog.pg_extension_config_dump('heap.erased_user', '');

ALTER TABLE heap.user_alias ENABLE ROW LEVEL SECURITY;
ALTER TABLE heap.user_merge ENABLE ROW LEVEL SECURITY;
ALTER TABLE heap.erased_user ENABLE ROW LEVEL SECURITY;
CREATE POLICY own_apps ON heap.user_alias
USING (pg_catalog.has_schema_privilege(pg_catalog.to_regnamespace(pg_catalog.quote_ident(app)), 'USAGE'));
CREATE POLICY own_apps ON heap.user_merge
USING (pg_catalog.has_schema_privilege(pg_catalog.to_regnamespace(pg_catalog.quote_ident(app)), 'USAGE'));
CREATE POLICY own_apps ON heap.erased_user
USING (pg_catalog.has_schema_privilege(pg_catalog.to_regnamespace(pg_catalog.quote_ident(app)), 'USAGE'));
COMMENT ON POLICY own_apps ON heap.user_alias IS 'Only apps whose schema the role may use';
COMMENT ON POLICY own_apps ON heap.user_merge IS 'Only apps whose schema the role may use';
COMMENT ON POLICY own_apps ON heap.erased_user IS 'Only apps whose schema the role may use';
GRANT SELECT ON heap.user_alias, heap.user_merge, heap.erased_user TO PUBLIC;
