CREATE SEQUENCE heap.catalog_version;
COMMENT ON SEQUENCE heap.catalog_version IS 'Versions of apps. Never reused, not even after a rollback or in an app of the same name';

CREATE TABLE heap.app (
    name text PRIMARY KEY,
    time_zone text NOT NULL,
    version bigint NOT NULL DEFAULT nextval('heap.catalog_version'),
    created_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE heap.app IS 'The apps of this database. Each has a schema of its name with the tables events and users';
COMMENT ON COLUMN heap.app.time_zone IS 'The zone in which the app''s days begin';
COMMENT ON COLUMN heap.app.version IS 'Another one after every change of a definition: sessions keep compiled statements until then';

CREATE TABLE heap.event_definition (
    app text NOT NULL REFERENCES heap.app (name) ON DELETE CASCADE,
    name text NOT NULL,
    definition text NOT NULL,
    predicate text NOT NULL,
    index_suffix text NOT NULL,
    uses text[] NOT NULL,
    changed_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (app, name)
);
COMMENT ON TABLE heap.event_definition IS 'The defined events of all apps; the view heap.events shows them with their indexes';
COMMENT ON COLUMN heap.event_definition.predicate IS 'Condition of the partial indexes: what the compiler makes of the definition';
COMMENT ON COLUMN heap.event_definition.index_suffix IS 'The index on a partition is called <partition>_<index_suffix>';
COMMENT ON COLUMN heap.event_definition.uses IS 'Defined events this one is made of, directly';

SELECT pg_catalog.pg_extension_config_dump('heap.catalog_version', '');
SELECT pg_catalog.pg_extension_config_dump('heap.app', '');
SELECT pg_catalog.pg_extension_config_dump('heap.event_definition', '');

-- A role sees the apps whose schema it may use, and nothing of the others.
ALTER TABLE heap.app ENABLE ROW LEVEL SECURITY;
ALTER TABLE heap.event_definition ENABLE ROW LEVEL SECURITY;
CREATE POLICY own_apps ON heap.app
USING (pg_catalog.has_schema_privilege(pg_catalog.to_regnamespace(pg_catalog.quote_ident(name)), 'USAGE'));
CREATE POLICY own_apps ON heap.event_definition
USING (pg_catalog.has_schema_privilege(pg_catalog.to_regnamespace(pg_catalog.quote_ident(app)), 'USAGE'));
COMMENT ON POLICY own_apps ON heap.app IS 'Only apps whose schema the role may use';
COMMENT ON POLICY own_apps ON heap.event_definition IS 'Only apps whose schema the role may use';
GRANT SELECT ON heap.app, heap.event_definition TO PUBLIC;

CREATE TYPE heap._compiled AS (
    kind text,
    statements text[],
    error text,
    sqlstate text
);
COMMENT ON TYPE heap._compiled IS 'What the compiler made of a statement: a query or commands, or the error to raise';
