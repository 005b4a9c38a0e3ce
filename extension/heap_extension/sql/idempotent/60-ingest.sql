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
SELECT nullif(coalesce(times, '{}') || coalesce(jsonb_object_agg(n.key, n.value) FILTER (
    WHERE coalesce(n.value > times -> n.key, true)
), '{}'), '{}')
FROM jsonb_each(new_times) AS n
$$;
COMMENT ON FUNCTION heap._latest_times(jsonb, jsonb) IS 'When each of a user''s properties was set, after others were';
