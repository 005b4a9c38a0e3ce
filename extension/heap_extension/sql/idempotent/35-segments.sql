CREATE OR REPLACE FUNCTION heap.define_segment(name text, definition text)
RETURNS void
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$ SELECT heap._run('define_segment', ARRAY[name, definition]) $$;
COMMENT ON FUNCTION heap.define_segment(text, text) IS
'Defines a segment, or redefines it: heap.define_segment(''Lapsed'', ''users who did not do any in last 30 days'')';

CREATE OR REPLACE FUNCTION heap.drop_segment(name text)
RETURNS void
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$ SELECT heap._run('drop_segment', ARRAY[name]) $$;
COMMENT ON FUNCTION heap.drop_segment(text) IS 'Drops a segment and its list';

CREATE OR REPLACE FUNCTION heap.list_segment(name text)
RETURNS void
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$ SELECT heap._run('list_segment', ARRAY[name]) $$;
COMMENT ON FUNCTION heap.list_segment(text) IS
'Stores the segment''s users of now as a list, which analyses then read; called again, it fills the list anew';

CREATE OR REPLACE FUNCTION heap.unlist_segment(name text)
RETURNS void
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$ SELECT heap._run('unlist_segment', ARRAY[name]) $$;
COMMENT ON FUNCTION heap.unlist_segment(text) IS 'Drops the segment''s list: analyses find its users anew each time';

CREATE OR REPLACE VIEW heap.segments WITH (security_invoker = TRUE) AS
SELECT
    app,
    name,
    definition,
    listed_at
FROM heap.segment_definition;
COMMENT ON VIEW heap.segments IS 'Segments: definition, and when the list of its users was filled, if it has one';
GRANT SELECT ON heap.segments TO PUBLIC;
