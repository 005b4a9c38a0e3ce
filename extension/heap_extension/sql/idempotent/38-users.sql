CREATE OR REPLACE FUNCTION heap._final_user(app text, user_id bigint)
RETURNS bigint
LANGUAGE sql
STABLE
SET search_path = pg_catalog, pg_temp
AS $$
WITH RECURSIVE way (user_id, steps) AS (
    SELECT $2, 0
    UNION ALL
    SELECT coalesce(a.merged_into, m.merged_into), w.steps + 1
    FROM way AS w
    LEFT JOIN heap.user_alias AS a ON a.app = $1 AND a.user_id = w.user_id
    LEFT JOIN heap.user_merge AS m ON m.app = $1 AND m.user_id = w.user_id
    WHERE coalesce(a.merged_into, m.merged_into) IS NOT NULL
)
SELECT w.user_id FROM way AS w ORDER BY w.steps DESC LIMIT 1
$$;
COMMENT ON FUNCTION heap._final_user(text, bigint) IS 'Who a user is, once every merge asked for so far is done';

CREATE OR REPLACE FUNCTION heap.merge_users("from" bigint, "to" bigint)
RETURNS void
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$ SELECT heap._run('merge_users', ARRAY["from"::text, "to"::text]) $$;
COMMENT ON FUNCTION heap.merge_users(bigint, bigint) IS
'Makes all events of one user those of another, the past ones and those to come: at once, or with Citus by heap maintain, whole at one moment';

CREATE OR REPLACE FUNCTION heap.identify(user_id bigint, identity text)
RETURNS bigint
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    known heap._compiled;
BEGIN
    PERFORM heap._run('identify', ARRAY[user_id::text, identity]);
    known := heap._compile('known_user', ARRAY[identity]);
    PERFORM heap._raise(known);
    RETURN known.statements[1]::bigint;
END
$$;
COMMENT ON FUNCTION heap.identify(bigint, text) IS
'Says that a user is the person the app knows by this identity: merges them into the user of that identity, made if need be, which it returns';

CREATE OR REPLACE FUNCTION heap.delete_user(user_id bigint)
RETURNS TABLE (
    relation text,
    deleted bigint
)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET standard_conforming_strings = on
AS $$
DECLARE
    traces heap._compiled := heap._compile('user_traces', ARRAY[user_id::text]);
BEGIN
    PERFORM heap._raise(traces);
    RETURN QUERY EXECUTE traces.statements[1];
    PERFORM heap._run('delete_user', ARRAY[delete_user.user_id::text]);
END
$$;
COMMENT ON FUNCTION heap.delete_user(bigint) IS
'Erases a person: every row of the user and of the users merged into it, in every table of the app and of heap, which are counted in the answer; heap.erased_user keeps the ids';

CREATE OR REPLACE FUNCTION heap.upgrade_apps()
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    app record;
    compiled heap._compiled;
    command text;
    chosen text := current_setting('heap.app', true);
BEGIN
    FOR app IN SELECT a.name FROM heap.app AS a ORDER BY 1 LOOP
        PERFORM set_config('heap.app', app.name, true);
        compiled := heap._compile('upgrade_app', ARRAY[app.name]);
        PERFORM heap._raise(compiled);
        FOREACH command IN ARRAY compiled.statements LOOP
            EXECUTE command;
        END LOOP;
    END LOOP;
    PERFORM set_config('heap.app', coalesce(chosen, ''), true);
END
$$;
COMMENT ON FUNCTION heap.upgrade_apps() IS
'Gives the apps of earlier versions the columns and tables of this one; heap install calls it, after ALTER EXTENSION heap UPDATE by hand somebody must';
