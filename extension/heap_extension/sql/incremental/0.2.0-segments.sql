CREATE TABLE heap.segment_definition (
    app text NOT NULL REFERENCES heap.app (name) ON DELETE CASCADE,
    name text NOT NULL,
    definition text NOT NULL,
    events text[] NOT NULL,
    segments text[] NOT NULL,
    list_table text,
    listed_at timestamptz,
    changed_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (app, name)
);
COMMENT ON TABLE heap.segment_definition IS 'The segments of all apps; the view heap.segments shows them';
COMMENT ON COLUMN heap.segment_definition.definition IS 'The condition on users as written, from where or who on';
COMMENT ON COLUMN heap.segment_definition.events IS 'Defined events it is made of, directly';
COMMENT ON COLUMN heap.segment_definition.segments IS 'Segments it is made of, directly';
COMMENT ON COLUMN heap.segment_definition.list_table IS 'Table of its users in the app''s schema, when it has a list';
COMMENT ON COLUMN heap.segment_definition.listed_at IS 'When the list was last filled';

SELECT pg_catalog.pg_extension_config_dump('heap.segment_definition', '');

ALTER TABLE heap.segment_definition ENABLE ROW LEVEL SECURITY;
CREATE POLICY own_apps ON heap.segment_definition
USING (pg_catalog.has_schema_privilege(pg_catalog.to_regnamespace(pg_catalog.quote_ident(app)), 'USAGE'));
COMMENT ON POLICY own_apps ON heap.segment_definition IS 'Only apps whose schema the role may use';
GRANT SELECT ON heap.segment_definition TO PUBLIC;

-- An event defined by a sequence has no condition an index could hold.
ALTER TABLE heap.event_definition ALTER COLUMN predicate DROP NOT NULL;
ALTER TABLE heap.event_definition ALTER COLUMN index_suffix DROP NOT NULL;

-- The rows of these have columns more, which no CREATE OR REPLACE can add.
DROP FUNCTION IF EXISTS heap.funnel(text[]);
DROP FUNCTION IF EXISTS heap.funnel(text);
DROP FUNCTION IF EXISTS heap.lifecycle(text);
DROP FUNCTION IF EXISTS heap.stickiness(text);
