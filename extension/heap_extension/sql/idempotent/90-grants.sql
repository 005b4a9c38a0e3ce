-- PL/Python is untrusted: a role gets these functions only when somebody gives them to it. Functions run with the
-- caller's own rights, so a role also needs its app's schema and tables.

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA heap FROM PUBLIC;
GRANT USAGE ON SCHEMA heap TO PUBLIC;

CREATE OR REPLACE FUNCTION heap.grant_analyst(app text, analyst regrole)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM heap.app WHERE heap.app.name = grant_analyst.app) THEN
        RAISE EXCEPTION 'error: unknown app %', quote_literal(app) USING ERRCODE = 'undefined_object';
    END IF;
    EXECUTE format('GRANT USAGE ON SCHEMA %I TO %s', app, analyst);
    EXECUTE format('GRANT SELECT ON ALL TABLES IN SCHEMA %I TO %s', app, analyst);
    EXECUTE format('ALTER DEFAULT PRIVILEGES IN SCHEMA %I GRANT SELECT ON TABLES TO %s', app, analyst);
    EXECUTE format(
        'GRANT EXECUTE ON FUNCTION heap._compile(text, text[]), heap._raise(heap._compiled), heap._analysis(text, text),'
        ' heap._has_citus(), heap._maintainer(), heap._placements(text), heap._on_nodes(text), heap._node_indexes(text), heap.index_health(text), heap.partition_health(text), heap._later_end(bigint, bigint, bigint), heap._last_taken(bigint, bigint),'
        ' heap.sql(text), heap.query(text), heap.explain(text, boolean),'
        ' heap.complete(text, int),'
        ' heap.funnel(text), heap.funnel(text[]), heap.trend(text), heap.retention(text), heap.lifecycle(text),'
        ' heap.stickiness(text), heap.users(text), heap.sessions(text), heap.distribution(text), heap.time(text),'
        ' heap.paths(text), heap.attribution(text), heap.correlate(text), heap.effort(text) TO %s', analyst
    );
END
$$;
COMMENT ON FUNCTION heap.grant_analyst(text, regrole) IS
'Lets a role run analyses on one app, and see nothing of the others';
REVOKE ALL ON FUNCTION heap.grant_analyst(text, regrole) FROM PUBLIC;
