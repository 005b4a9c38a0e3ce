CREATE OR REPLACE FUNCTION heap.create_app(name text, time_zone text DEFAULT 'UTC', shard_count int DEFAULT NULL)
RETURNS void
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$ SELECT heap._run_in(name, 'create_app', ARRAY[name, time_zone, shard_count::text]) $$;
COMMENT ON FUNCTION heap.create_app(text, text, int) IS
'Creates an app: a schema of that name with its tables events (partitioned by month) and users, and its roles heap_<app>_read and heap_<app>_write. Days begin in time_zone.
With Citus both are distributed by user_id over shard_count shards (null: citus.shard_count), those of a user on one node';

CREATE OR REPLACE FUNCTION heap.drop_app(name text)
RETURNS void
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$ SELECT heap._run_in(name, 'drop_app', ARRAY[name]) $$;
COMMENT ON FUNCTION heap.drop_app(text) IS 'Drops an app with its events, users, definitions and roles. There is no way back';

CREATE OR REPLACE FUNCTION heap.make_partitions(app text, first_time timestamptz, last_time timestamptz)
RETURNS void
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$
SELECT heap._run_in(app, 'make_partitions', ARRAY[
    to_char(first_time AT TIME ZONE 'UTC', 'YYYY-MM'),
    to_char(last_time AT TIME ZONE 'UTC', 'YYYY-MM')
])
$$;
COMMENT ON FUNCTION heap.make_partitions(text, timestamptz, timestamptz) IS
'Makes the monthly partitions that hold the two times and all between, with the index of every definition; events that wait in the default partition move over';
