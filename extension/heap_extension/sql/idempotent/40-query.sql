CREATE OR REPLACE FUNCTION heap.sql(statement text)
RETURNS text
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    compiled heap._compiled := heap._compile('statement', ARRAY[statement]);
BEGIN
    PERFORM heap._raise(compiled);
    RETURN array_to_string(compiled.statements, E';\n');
END
$$;
COMMENT ON FUNCTION heap.sql(text) IS 'The SQL a statement compiles to. In psql: SELECT heap.sql(''...'') \gexec';

CREATE OR REPLACE FUNCTION heap.query(statement text)
RETURNS SETOF jsonb
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET standard_conforming_strings = on
SET jit = off
AS $$
DECLARE
    compiled heap._compiled := heap._compile('statement', ARRAY[statement]);
BEGIN
    PERFORM heap._raise(compiled);
    IF compiled.kind = 'query' THEN
        -- OFFSET keeps the order of the rows: without it Citus would let the workers make the objects, and not sort them.
        RETURN QUERY EXECUTE 'SELECT to_jsonb(answer) FROM (' || compiled.statements[1] || ' OFFSET 0) AS answer';
    ELSE
        PERFORM heap._run('statement', ARRAY[statement]);
        RETURN NEXT jsonb_build_object('done', compiled.kind);
    END IF;
END
$$;
COMMENT ON FUNCTION heap.query(text) IS 'Runs any statement of the analysis language, one JSON object per row';

CREATE OR REPLACE FUNCTION heap.explain(statement text, "analyze" boolean DEFAULT false)
RETURNS SETOF text
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET standard_conforming_strings = on
SET jit = off
AS $$
DECLARE
    compiled heap._compiled := heap._compile('statement', ARRAY[statement]);
    options text := CASE WHEN "analyze" THEN 'ANALYZE, BUFFERS' ELSE 'COSTS OFF' END;
    shown text := current_setting('citus.explain_all_tasks', true);
    reads text[];
    read text;
    plan jsonb;
    read_plan jsonb;
    described heap._compiled;
BEGIN
    PERFORM heap._raise(compiled);
    IF compiled.kind <> 'query' THEN
        RETURN QUERY SELECT unnest(compiled.statements);
        RETURN;
    END IF;
    -- Its rows are added up over all shards; the plan that is shown is that of one.
    PERFORM set_config('citus.explain_all_tasks', 'on', true);
    EXECUTE 'EXPLAIN (FORMAT JSON, ANALYZE ' || "analyze"::text || ') ' || compiled.statements[1] INTO plan;
    -- What kernels read beside the data is no part of the query's plan.
    reads := (heap._compile('kernel_reads', ARRAY[statement])).statements;
    FOREACH read IN ARRAY reads LOOP
        EXECUTE 'EXPLAIN (FORMAT JSON, ANALYZE ' || "analyze"::text || ') ' || read INTO read_plan;
        plan := plan || read_plan;
    END LOOP;
    PERFORM set_config('citus.explain_all_tasks', coalesce(shown, 'off'), true);
    described := heap._compile('describe', ARRAY[statement, plan::text]);
    PERFORM heap._raise(described);
    RETURN QUERY SELECT unnest(described.statements);
    RETURN NEXT '';
    RETURN QUERY EXECUTE 'EXPLAIN (' || options || ') ' || compiled.statements[1];
    FOREACH read IN ARRAY reads LOOP
        RETURN NEXT '';
        RETURN NEXT 'the kernel of each shard reads, partition by partition:';
        RETURN QUERY EXECUTE 'EXPLAIN (' || options || ') ' || read;
    END LOOP;
END
$$;
COMMENT ON FUNCTION heap.explain(text, boolean) IS
'How a statement runs: which index serves each step, whether it is read alone, what is pushed down, and the plan';

CREATE OR REPLACE FUNCTION heap.complete(statement text, "position" int DEFAULT null)
RETURNS SETOF text
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    compiled heap._compiled := heap._compile('complete', ARRAY[statement, "position"::text]);
BEGIN
    PERFORM heap._raise(compiled);
    RETURN QUERY SELECT unnest(compiled.statements);
END
$$;
COMMENT ON FUNCTION heap.complete(text, int) IS
'What may stand at a position of a statement, counted in characters from 0; without it, at its end';
