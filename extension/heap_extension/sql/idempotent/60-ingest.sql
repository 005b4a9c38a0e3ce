-- Properties of users arrive in any order. Each has the time it was set, in microseconds since 1970; the latest wins, and
-- of one instant the greater value, so that the order of arrival never matters.

CREATE OR REPLACE FUNCTION heap._latest_properties(
    properties jsonb, times jsonb, new_properties jsonb, new_times jsonb
)
RETURNS jsonb
LANGUAGE sql
IMMUTABLE
PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
SELECT coalesce(properties, '{}') || coalesce(jsonb_object_agg(n.key, n.value) FILTER (
    WHERE properties -> n.key IS NULL
    OR coalesce(new_times -> n.key > times -> n.key, true)
    OR (new_times -> n.key = times -> n.key AND n.value > properties -> n.key)
), '{}')
FROM jsonb_each(new_properties) AS n
$$;
COMMENT ON FUNCTION heap._latest_properties(jsonb, jsonb, jsonb, jsonb) IS
'A user''s properties after others were set: of each the one set last';

CREATE OR REPLACE FUNCTION heap._latest_times(times jsonb, new_times jsonb)
RETURNS jsonb
LANGUAGE sql
IMMUTABLE
PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
SELECT coalesce(times, '{}') || coalesce(jsonb_object_agg(n.key, n.value) FILTER (
    WHERE coalesce(n.value > times -> n.key, true)
), '{}')
FROM jsonb_each(new_times) AS n
$$;
COMMENT ON FUNCTION heap._latest_times(jsonb, jsonb) IS 'When each of a user''s properties was set, after others were';

CREATE OR REPLACE FUNCTION heap._add_property_times()
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    asked text;
BEGIN
    FOR asked IN
        SELECT a.name FROM heap.app AS a
        INNER JOIN pg_class AS c ON c.relnamespace = to_regnamespace(quote_ident(a.name)) AND c.relname = 'users'
        WHERE NOT EXISTS (
            SELECT FROM pg_attribute AS t WHERE t.attrelid = c.oid AND t.attname = 'property_times' AND NOT t.attisdropped
        )
    LOOP
        EXECUTE format('ALTER TABLE %I.users ADD COLUMN property_times jsonb', asked);
    END LOOP;
END
$$;
COMMENT ON FUNCTION heap._add_property_times() IS
'Gives the tables of apps made before version 0.4.0 their column for the times of properties; for heap install --dsn';
