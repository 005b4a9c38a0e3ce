CREATE OR REPLACE FUNCTION heap._pack_places(app text)
RETURNS TABLE (
    node text,
    partition text,
    shard bigint,
    relation text,
    packs text,
    place bigint
)
LANGUAGE plpgsql
STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    places bigint[];
    is_distributed boolean := FALSE;
BEGIN
    IF to_regclass(format('%I.packs', app)) IS NULL THEN
        RETURN;
    END IF;
    places := heap._shard_places(app);
    IF heap._has_citus() THEN
        RETURN QUERY EXECUTE $query$
            SELECT p.node, p.partition, p.shard, p.relation, 'packs_' || theirs.shardid, s.place
            FROM heap._placements($1) AS p
            INNER JOIN pg_dist_shard AS own ON own.shardid = p.shard
            INNER JOIN pg_dist_shard AS theirs
                ON theirs.shardminvalue = own.shardminvalue AND theirs.logicalrelid = to_regclass(quote_ident($1) || '.packs')
            INNER JOIN unnest($2) AS s (place)
                ON get_shard_id_for_distribution_column(theirs.logicalrelid, s.place) = theirs.shardid
        $query$ USING app, places;
        is_distributed := FOUND;
    END IF;
    IF NOT is_distributed THEN
        RETURN QUERY SELECT p.node, p.partition, p.shard, p.relation, 'packs', 1::bigint
        FROM heap._placements(app) AS p WHERE p.shard IS NULL;
    END IF;
END
$$;
COMMENT ON FUNCTION heap._pack_places(text) IS
'Where packs of an app''s partitions may be: each table or shard, the table packs beside it, and the number it has in shards';

DROP FUNCTION IF EXISTS heap.pack_health(text);
CREATE OR REPLACE FUNCTION heap.pack_health(for_app text DEFAULT NULL)
RETURNS TABLE (
    app text,
    event text,
    partition text,
    node text,
    shard bigint,
    relation text,
    packs text,
    condition text,
    place bigint,
    state text,
    events bigint,
    bytes bigint,
    written bigint,
    goes_on boolean
)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    asked text;
BEGIN
    FOR asked IN SELECT a.name FROM heap.app AS a WHERE for_app IS NULL OR a.name = for_app ORDER BY 1 LOOP
        RETURN QUERY
        WITH places AS MATERIALIZED (
            SELECT
                p.*,
                p.partition ~ '^events_\d{4}_\d{2}$' AND s.pack_after IS NOT NULL AND (m.is_over OR s.pack_every IS NOT NULL) AS is_packed,
                NOT m.is_over AS goes_on
            FROM heap._pack_places(asked) AS p
            CROSS JOIN heap.settings AS s
            CROSS JOIN LATERAL (
                SELECT coalesce(clock_timestamp() > s.pack_after
                    + (to_date(substring(p.partition, '^events_(\d{4}_\d{2})$'), 'YYYY_MM') + interval '1 month') AT TIME ZONE 'UTC', FALSE)
                    AS is_over
            ) AS m
        ),
        answers AS MATERIALIZED (
            SELECT * FROM heap._on_nodes(format(
                'SELECT heap._packs_here(%L, %L, %L)', asked,
                (SELECT coalesce(array_agg(DISTINCT p.partition), '{}') FROM places AS p WHERE p.is_packed AND NOT p.goes_on),
                (SELECT coalesce(array_agg(DISTINCT p.partition), '{}') FROM places AS p WHERE p.is_packed AND p.goes_on)
            ))
        ),
        tables AS MATERIALIZED (
            SELECT p.*, t.stamp, t.events, t.written
            FROM places AS p
            INNER JOIN answers AS n ON n.node IS NOT DISTINCT FROM p.node
            INNER JOIN LATERAL json_to_recordset(n.answer -> 'tables') AS t (relation text, stamp text, events bigint, written bigint)
                ON t.relation = p.relation
            WHERE p.is_packed
        ),
        present AS MATERIALIZED (
            SELECT n.node, p.partition, p.shard, k.*
            FROM answers AS n
            INNER JOIN LATERAL json_to_recordset(n.answer -> 'packs') AS k (
                packs text, relation text, condition text, stamp text, events bigint, bytes bigint
            ) ON TRUE
            INNER JOIN (SELECT DISTINCT node, packs FROM places) AS t ON t.node IS NOT DISTINCT FROM n.node AND t.packs = k.packs
            LEFT JOIN places AS p
                ON p.node IS NOT DISTINCT FROM n.node AND p.packs = k.packs AND p.relation = k.relation
        ),
        wanted AS MATERIALIZED (
            SELECT
                t.node, t.partition, t.shard, t.relation, t.packs, t.place, t.stamp, t.written, t.goes_on, min(d.name) AS name,
                encode(sha256(convert_to(d.predicate, 'UTF8')), 'hex') AS condition
            FROM tables AS t
            CROSS JOIN heap.settings AS s
            INNER JOIN heap._node_indexes(asked) AS i ON i.relation = t.relation AND i.node IS NOT DISTINCT FROM t.node
            INNER JOIN heap.event_definition AS d
                ON d.app = asked AND i.index_name = t.partition || '_' || d.index_suffix || coalesce('_' || t.shard, '')
            WHERE i.is_valid AND i.entries >= s.pack_above AND NOT d.dormant
            GROUP BY t.node, t.partition, t.shard, t.relation, t.packs, t.place, t.stamp, t.written, t.goes_on, d.predicate
            UNION ALL
            SELECT
                t.node, t.partition, t.shard, t.relation, t.packs, t.place, t.stamp, t.written, t.goes_on, NULL,
                encode(sha256('@every_event@'), 'hex')
            FROM tables AS t
            CROSS JOIN heap.settings AS s
            WHERE s.pack_any AND t.events >= s.pack_above
        )
        SELECT
            asked, w.name, coalesce(w.partition, k.partition), coalesce(w.node, k.node), coalesce(w.shard, k.shard),
            coalesce(w.relation, k.relation), coalesce(w.packs, k.packs), coalesce(w.condition, k.condition), w.place,
            CASE
                WHEN w.condition IS NULL THEN 'orphan'
                WHEN k.stamp = w.stamp THEN 'valid'
                WHEN k.condition IS NOT NULL THEN 'stale'
                WHEN w.stamp IS NULL THEN 'waiting'
                ELSE 'missing'
            END,
            k.events, k.bytes, w.written, coalesce(w.goes_on, FALSE)
        FROM wanted AS w
        FULL JOIN present AS k
            ON k.relation = w.relation AND k.condition = w.condition AND k.packs = w.packs
            AND coalesce(k.node, '') = coalesce(w.node, '');
    END LOOP;
END
$$;
COMMENT ON FUNCTION heap.pack_health(text) IS
$$Every pack of every event on every placement, without name those of any event: state (valid, stale: rows came or went since, missing, waiting: rows came or went and the
partition was not vacuumed since, orphan: nobody asks for it), the table it is in, its events and bytes, how many rows were ever written to
the partition, and whether that goes on: then a pack is valid for the pages that did not change since, and stale after a VACUUM$$;
