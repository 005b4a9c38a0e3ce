-- Packs: events of cold partitions as arrays, which kernels read instead of indexes. heap_extension.kernels.page_stamps
-- says why they are never stale.

CREATE OR REPLACE FUNCTION heap._create_packs(packs text)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    EXECUTE format('CREATE TABLE %s (
        place bigint, relation text, condition text, part int, stamp bytea NOT NULL, first_user bigint, last_user bigint,
        events int NOT NULL, users bytea, counts bytea, times bytea, event_ids bytea, pages bytea,
        PRIMARY KEY (condition, relation, part, place)
    )', packs);
    -- As they are made, they are as small as numbers get quickly; and are read in part.
    EXECUTE format('ALTER TABLE %s ALTER users SET STORAGE EXTERNAL, ALTER counts SET STORAGE EXTERNAL,
        ALTER times SET STORAGE EXTERNAL, ALTER event_ids SET STORAGE EXTERNAL, ALTER pages SET STORAGE EXTERNAL', packs);
    EXECUTE format('COMMENT ON TABLE %s IS %L', packs,
        'Events of definitions as arrays; heap maintain makes and drops them');
    EXECUTE format('COMMENT ON COLUMN %s.place IS %L', packs, 'The number in shards of the shard it is of');
    EXECUTE format('COMMENT ON COLUMN %s.relation IS %L', packs, 'The table of the partition, or of its shard');
    EXECUTE format('COMMENT ON COLUMN %s.condition IS %L', packs, 'SHA-256 of the condition of the index, in hexadecimal digits');
    EXECUTE format('COMMENT ON COLUMN %s.part IS %L', packs, 'Parts follow each other in the order of user, time and event id');
    EXECUTE format('COMMENT ON COLUMN %s.stamp IS %L', packs, 'What heap._page_stamps gave for the table; when that is another, the pack is stale for good');
    EXECUTE format('COMMENT ON COLUMN %s.users IS %L', packs, 'The users, each once; counts has their numbers of events');
    EXECUTE format('COMMENT ON COLUMN %s.pages IS %L', packs,
        'The page of the table that each event is on; null where no row of the partition came or went when it was made');
END
$$;
COMMENT ON FUNCTION heap._create_packs(text) IS 'Makes the table packs of an app';

CREATE OR REPLACE FUNCTION heap._places(app text, user_ids bigint[])
RETURNS bigint[]
LANGUAGE plpgsql
STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    found bigint[] := heap._shard_places(app);
BEGIN
    IF cardinality(found) > 1 THEN
        EXECUTE $query$
            SELECT array_agg(DISTINCT p.place) FROM unnest($2) AS p (place)
            INNER JOIN unnest($3) AS u (user_id)
                ON get_shard_id_for_distribution_column($1, u.user_id) = get_shard_id_for_distribution_column($1, p.place)
        $query$ INTO found USING format('%I.shards', app)::regclass, found, user_ids;
    END IF;
    RETURN found;
END
$$;
COMMENT ON FUNCTION heap._places(text, bigint[]) IS 'The numbers in <app>.shards of the shards that users are in';

-- Of the contrib module pageinspect only this function is needed, whatever schema its extension may be in.
CREATE OR REPLACE FUNCTION heap._raw_page(relation text, fork text, page bigint)
RETURNS bytea
LANGUAGE c
STRICT
AS '$libdir/pageinspect', 'get_raw_page_fork_1_9';
COMMENT ON FUNCTION heap._raw_page(text, text, bigint) IS 'A page of a table (main) or of its visibility map (vm); for superusers';

CREATE OR REPLACE FUNCTION heap._page_stamps(tables text[])
RETURNS bytea[]
LANGUAGE plpython3u
STRICT
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $python$
@load_kernels@
from heap_extension.kernels.page_stamps import page_stamps
return page_stamps(plpy, tables)
$python$;
COMMENT ON FUNCTION heap._page_stamps(text[]) IS
'For each table a value that is the same only as long as no row came or went and all are visible to everybody; null while some may not be, and where
the session may not read; of no bytes for a table of no pages';

CREATE OR REPLACE FUNCTION heap._changing_pages(tables text[])
RETURNS TABLE (name text, stamp bytea, ranges bytea, live_rows bigint)
LANGUAGE plpython3u
STRICT
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $python$
@load_kernels@
from heap_extension.kernels.page_stamps import changing_pages
for name, found in zip(tables, changing_pages(plpy, tables)):
    if found is not None:
        yield name, found.stamp, found.ranges.tobytes(), found.rows
$python$;
COMMENT ON FUNCTION heap._changing_pages(text[]) IS
'The tables'' stamps, from which to before which page (int8 by int8, as the machine has them) they say nothing of the rows, and about how many rows
these pages have. While its stamp is the same, no row of any other page came or went. Without tables of no pages, and those that the session may not read';

CREATE OR REPLACE FUNCTION heap._is_pack_valid(relation text, stamp bytea, has_pages boolean)
RETURNS boolean
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT coalesce(
        stamp = (heap._page_stamps(ARRAY[relation]))[1],
        has_pages AND stamp = (SELECT c.stamp FROM heap._changing_pages(ARRAY[relation]) AS c),
        FALSE
    )
$$;
COMMENT ON FUNCTION heap._is_pack_valid(text, bytea, boolean) IS
'Whether a pack with this stamp is right: for the whole of its table, or, with pages, for those that did not change';

DROP FUNCTION IF EXISTS heap._make_pack(text, text, text, bigint, text);
CREATE OR REPLACE FUNCTION heap._make_pack(app text, relation text, packs text, place bigint, predicate text, goes_on boolean)
RETURNS bigint
LANGUAGE plpython3u
STRICT
SET search_path = pg_catalog, pg_temp
SET standard_conforming_strings = on
SET max_parallel_workers_per_gather = 0
SET jit = off
AS $python$
@load_kernels@
from heap_extension.kernels.packs import make_pack
return make_pack(plpy, app, relation, packs, place, predicate, goes_on)
$python$;
COMMENT ON FUNCTION heap._make_pack(text, text, text, bigint, text, boolean) IS
'Makes the pack of a condition in a partition, or in a shard of one that is on this node, in the place of one that is there; of one that goes on, with
the page of each event. How many events are in it; null when there is none, since rows may have come or gone meanwhile';

DROP FUNCTION IF EXISTS heap._packs_here(text, text[]);
CREATE OR REPLACE FUNCTION heap._packs_here(app text, over text[], going_on text[])
RETURNS json
LANGUAGE plpgsql
STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    packs record;
    found json;
    present jsonb := '[]';
    tables jsonb;
    is_distributed boolean := false;
BEGIN
    IF heap._has_citus() THEN
        EXECUTE 'SELECT EXISTS (SELECT FROM pg_dist_partition WHERE logicalrelid = to_regclass(quote_ident($1) || ''.packs''))'
        INTO is_distributed USING app;
    END IF;
    WITH here AS (
        SELECT c.oid, c.oid::regclass::text AS name, substring(c.relname, '^(events_\d{4}_\d{2})(?:_\d+)?$') AS of_partition
        FROM pg_class AS c
        WHERE c.relnamespace = to_regnamespace(quote_ident(app)) AND c.relkind = 'r'
    ),
    stamps AS (
        SELECT s.oid, s.stamp
        FROM (SELECT array_agg(h.oid) AS oids, array_agg(h.name) AS names FROM here AS h WHERE h.of_partition = ANY (over)) AS t
        CROSS JOIN LATERAL unnest(t.oids, heap._page_stamps(t.names)) AS s (oid, stamp)
        UNION ALL
        SELECT h.oid, p.stamp
        FROM here AS h
        LEFT JOIN heap._changing_pages(ARRAY(SELECT n.name FROM here AS n WHERE n.of_partition = ANY (going_on))) AS p ON p.name = h.name
        WHERE h.of_partition = ANY (going_on)
    )
    SELECT coalesce(jsonb_agg(jsonb_build_object(
        'relation', c.relname, 'stamp', md5(nullif(s.stamp, '')), 'events', greatest(c.reltuples, 0)::bigint,
        'written', pg_stat_get_tuples_inserted(c.oid) + pg_stat_get_tuples_updated(c.oid) + pg_stat_get_tuples_deleted(c.oid)
    )), '[]')
    INTO tables
    FROM stamps AS s
    INNER JOIN pg_class AS c ON c.oid = s.oid;
    FOR packs IN
        SELECT c.oid, c.relname FROM pg_class AS c
        WHERE c.relnamespace = to_regnamespace(quote_ident(app)) AND c.relkind = 'r' AND c.relname ~ '^packs(_\d+)?$'
            AND (c.relname = 'packs') <> is_distributed
    LOOP
        EXECUTE format('
            SELECT coalesce(json_agg(k), ''[]'') FROM (
                SELECT
                    %L AS packs, relation, condition, max(md5(stamp)) AS stamp, sum(events) AS events,
                    sum(coalesce(pg_column_size(users) + pg_column_size(counts) + pg_column_size(times) + pg_column_size(event_ids), 0)
                        + coalesce(pg_column_size(pages), 0)) AS bytes
                FROM %s GROUP BY relation, condition
            ) AS k', packs.relname, packs.oid::regclass)
        INTO found;
        present := present || found::jsonb;
    END LOOP;
    RETURN json_build_object('tables', tables, 'packs', present);
END
$$;
COMMENT ON FUNCTION heap._packs_here(text, text[], text[]) IS
'Of this node: the tables of an app''s partitions, those that are over and those that go on, with their stamps and how many rows were
ever written, and the packs in its tables packs';
