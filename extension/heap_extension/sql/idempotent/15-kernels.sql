-- Kernels run beside the data: the queries of analyses call them once per shard. They read what the caller may read, and,
-- being STABLE, nothing but reading statements, with the snapshot of the query that calls them.

-- All of them have the same settings. They group rows by hashes of sessions, which spill where work_mem is small.
DO $do$
DECLARE
    kernel record;
BEGIN
    FOR kernel IN
        SELECT * FROM (VALUES
            ('_funnel_kernel', '_funnel_totals', 'funnel', 'funnel',
                'The totals of a funnel in one shard: that of the row of <app>.shards in the table relation. What it reads and counts is in the specification'),
            ('_counting_kernel', '_kernel_totals', 'counting', 'counting',
                'Users and events of one shard by bucket and group, for trends, retention, lifecycle and stickiness; as heap._funnel_kernel'),
            ('_paths_kernel', '_kernel_totals', 'paths', 'paths',
                'The moves from node to node in the paths of one shard: a row per step, source and target; as heap._funnel_kernel'),
            ('_sessions_kernel', '_kernel_totals', 'sessions', 'count_sessions',
                'The sessions of one shard by bucket and group; as heap._funnel_kernel'),
            ('_attribution_kernel', '_kernel_totals', 'attribution', 'credited_touches',
                'What is credited to the touches of one shard: a row per group and number of touches; as heap._funnel_kernel'),
            ('_correlate_kernel', '_kernel_totals', 'correlate', 'correlate',
                'Who converts in one shard, and who does not, by the values of each factor; as heap._funnel_kernel')
        ) AS kernels (name, totals, module, entry, says)
    LOOP
        EXECUTE replace(replace(replace(replace($definition$
            CREATE OR REPLACE FUNCTION heap.<name>(relation oid, specification json)
            RETURNS SETOF heap.<totals>
            LANGUAGE plpython3u
            STABLE
            STRICT
            ROWS 100
            COST 1000000
            SET search_path = pg_catalog, pg_temp
            SET standard_conforming_strings = on
            SET plan_cache_mode = force_generic_plan
            SET max_parallel_workers_per_gather = 0
            SET work_mem = '64MB'
            SET jit = off
            AS $python$
@load_kernels@
from heap_extension.kernels.<module> import <entry>
return <entry>(plpy, relation, specification)
$python$
        $definition$, '<name>', kernel.name), '<totals>', kernel.totals), '<module>', kernel.module), '<entry>', kernel.entry);
        EXECUTE format('COMMENT ON FUNCTION heap.%I(oid, json) IS %L', kernel.name, kernel.says);
        -- Rows travel as columns: those of a composite type Citus sends as text. And who reads them has a query without
        -- distributed tables, which PostgreSQL plans once, and which puts no intermediate results into files.
        EXECUTE replace(replace(replace($definition$
            CREATE OR REPLACE FUNCTION heap.<name>s(app text, specification json)
            RETURNS SETOF heap.<totals>
            LANGUAGE plpgsql
            STABLE
            STRICT
            ROWS 100
            COST 1000000
            SET search_path = pg_catalog, pg_temp
            AS $body$
            BEGIN
                RETURN QUERY EXECUTE format(
                    'SELECT (calls.totals).* FROM (SELECT heap.<name>(shards.tableoid, $1) AS totals FROM %I.shards) AS calls', app
                ) USING specification;
            END
            $body$
        $definition$, '<name>', kernel.name), '<totals>', kernel.totals), E'\n            ', E'\n');
        EXECUTE format(
            'COMMENT ON FUNCTION heap.%I(text, json) IS %L', kernel.name || 's', 'The rows of heap.' || kernel.name || ' from every shard of an app'
        );
    END LOOP;
END
$do$;

CREATE OR REPLACE FUNCTION heap._duration_quantiles(durations bytea, fractions double precision[])
RETURNS double precision[]
LANGUAGE plpython3u
IMMUTABLE
STRICT
PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $python$
@load_kernels@
from heap_extension.kernels.durations import quantiles
return quantiles(durations, fractions)
$python$;
COMMENT ON FUNCTION heap._duration_quantiles(bytea, double precision[]) IS
'The quantiles, in seconds, of durations that kernels found: 8 bytes each, microseconds, the lowest byte first. Interpolated as percentile_cont does';

CREATE OR REPLACE FUNCTION heap._average_duration(durations bytea)
RETURNS double precision
LANGUAGE plpython3u
IMMUTABLE
STRICT
PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $python$
@load_kernels@
from heap_extension.kernels.durations import average
return average(durations)
$python$;
COMMENT ON FUNCTION heap._average_duration(bytea) IS 'The average, in seconds, of durations that kernels found';

CREATE OR REPLACE FUNCTION heap._duration_counts(durations bytea, lows bigint[])
RETURNS bigint[]
LANGUAGE plpython3u
IMMUTABLE
STRICT
PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $python$
@load_kernels@
from heap_extension.kernels.durations import counts
return counts(durations, lows)
$python$;
COMMENT ON FUNCTION heap._duration_counts(bytea, bigint[]) IS
'How many of the durations that kernels found are in each bin; lows are where the bins begin, in seconds';

CREATE OR REPLACE FUNCTION heap._shard_count(app text)
RETURNS int
LANGUAGE plpgsql
STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    found int := 0;
BEGIN
    IF EXISTS (SELECT FROM pg_extension WHERE extname = 'citus') THEN
        EXECUTE 'SELECT count(*) FROM pg_dist_shard WHERE logicalrelid = to_regclass(quote_ident($1) || ''.shards'')'
        INTO found USING app;
    END IF;
    RETURN CASE WHEN found = 0 THEN 1 ELSE found END;
END
$$;
COMMENT ON FUNCTION heap._shard_count(text) IS 'How many shards an app has; on plain PostgreSQL it is one itself';

CREATE OR REPLACE FUNCTION heap._distribute_with_users(app text, relation text)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF to_regclass('pg_catalog.pg_dist_partition') IS NOT NULL THEN
        EXECUTE format(
            'SELECT create_distributed_table(%L, ''place'', colocate_with => %L) FROM pg_dist_partition WHERE logicalrelid = %L::regclass',
            relation, format('%I.users', app), format('%I.users', app)
        );
    END IF;
END
$$;
COMMENT ON FUNCTION heap._distribute_with_users(text, text) IS 'Gives a table with a column place a shard beside each of the app''s users, if those have shards';

CREATE OR REPLACE FUNCTION heap._shard_places(app text)
RETURNS bigint[]
LANGUAGE plpgsql
STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    wanted int := heap._shard_count(app);
    ids bigint[] := ARRAY[1];
    highest bigint := 16 * wanted;
BEGIN
    WHILE cardinality(ids) < wanted LOOP
        EXECUTE 'SELECT array_agg(id) FROM (
            SELECT min(id) AS id FROM generate_series(1, $2) AS id GROUP BY get_shard_id_for_distribution_column($1, id)
        ) AS of_shards' INTO ids USING format('%I.shards', app)::regclass, highest;
        highest := 2 * highest;
    END LOOP;
    RETURN ids;
END
$$;
COMMENT ON FUNCTION heap._shard_places(text) IS
'A number for each shard of an app, the smallest whose hash is in its range: what <app>.shards has, known without asking the nodes. They are nobody''s
id: the column is not called user_id, so that no user''s rows are looked for there';

CREATE OR REPLACE FUNCTION heap.make_shards(app text DEFAULT NULL)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    asked text;
    made int;
    shards text;
    packs text;
    wanted int;
    ids bigint[];
BEGIN
    FOR asked, made IN SELECT a.name, a.shards FROM heap.app AS a WHERE app IS NULL OR a.name = app ORDER BY 1 LOOP
        shards := format('%I.shards', asked);
        IF to_regclass(shards) IS NULL THEN
            EXECUTE format('CREATE TABLE %s (place bigint PRIMARY KEY)', shards);
            EXECUTE format('COMMENT ON TABLE %s IS %L', shards, 'One row in every shard: kernels run once for each');
            PERFORM heap._distribute_with_users(asked, shards);
        END IF;
        packs := format('%I.packs', asked);
        IF to_regclass(packs) IS NULL THEN
            PERFORM heap._create_packs(packs);
            PERFORM heap._distribute_with_users(asked, packs);
        END IF;
        wanted := heap._shard_count(asked);
        CONTINUE WHEN made = wanted;
        ids := heap._shard_places(asked);
        EXECUTE format('DELETE FROM %s', shards);
        EXECUTE format('INSERT INTO %s SELECT unnest($1)', shards) USING ids;
        UPDATE heap.app AS a SET shards = wanted WHERE a.name = asked;
    END LOOP;
END
$$;
COMMENT ON FUNCTION heap.make_shards(text) IS
'Makes the tables shards and packs of an app, or of all, where they are missing, and a row per shard: after an upgrade, and after shards were split';
