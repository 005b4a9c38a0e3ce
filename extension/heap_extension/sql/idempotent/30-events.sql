CREATE OR REPLACE FUNCTION heap.define_event(name text, definition text)
RETURNS void
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$ SELECT heap._run('define_event', ARRAY[name, definition]) $$;
COMMENT ON FUNCTION heap.define_event(text, text) IS
'Defines an event, or redefines it, over all history, and builds its partial indexes in this transaction';

CREATE OR REPLACE FUNCTION heap.cover_event(name text, VARIADIC columns text[] DEFAULT '{}')
RETURNS void
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$ SELECT heap._run('cover_event', name || columns) $$;
COMMENT ON FUNCTION heap.cover_event(text, text[]) IS
'Keeps columns of the events in an event''s indexes, so that groups by them are read from there and not from the table; without columns, none';

CREATE OR REPLACE FUNCTION heap.drop_event(name text)
RETURNS void
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$ SELECT heap._run('drop_event', ARRAY[name]) $$;
COMMENT ON FUNCTION heap.drop_event(text) IS 'Drops a defined event and its indexes; the captured events stay';

CREATE OR REPLACE VIEW heap.events WITH (security_invoker = TRUE) AS
SELECT
    d.app,
    d.name,
    d.definition,
    CASE
        WHEN d.predicate IS NULL THEN 'none'
        WHEN d.dormant THEN 'dormant'
        WHEN i.ready = i.wanted THEN 'ready'
        WHEN i.ready > 0 THEN 'partial'
        ELSE 'missing'
    END AS index_state,
    i.matching_events,
    i.bytes
FROM heap.event_definition AS d
LEFT JOIN (
    SELECT
        app,
        event,
        count(*) AS wanted,
        count(*) FILTER (WHERE state = 'valid') AS ready,
        sum(matching_events)::bigint AS matching_events,
        sum(bytes)::bigint AS bytes
    FROM heap.index_health()
    GROUP BY app, event
) AS i ON i.app = d.app AND i.event = d.name;
COMMENT ON VIEW heap.events IS
'Defined events: definition, state of the indexes on all nodes (dormant: dropped until somebody asks), their entries and bytes as of the last VACUUM, ANALYZE or build';
GRANT SELECT ON heap.events TO PUBLIC;
