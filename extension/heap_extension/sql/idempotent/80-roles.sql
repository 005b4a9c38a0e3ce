CREATE OR REPLACE FUNCTION heap._tenant_functions()
RETURNS SETOF regprocedure
LANGUAGE sql
STABLE
SET search_path = pg_catalog, pg_temp
AS $$
SELECT p.oid::regprocedure
FROM pg_proc AS p
INNER JOIN pg_language AS l ON l.oid = p.prolang
WHERE p.pronamespace = 'heap'::regnamespace
    AND (
        p.oid IN (
            'heap._compile(text, text[])'::regprocedure, 'heap._run_in(text, text, text[])'::regprocedure,
            'heap._page_stamps(text[])'::regprocedure, 'heap._changing_pages(text[])'::regprocedure
        )
        OR p.proname LIKE '\_%\_kernel'
        OR (
            NOT p.prosecdef
            AND (l.lanpltrusted OR p.prokind = 'a')
            AND p.proname NOT IN (
                'create_app', 'drop_app', 'upgrade_apps', 'grant_analyst', 'grant_roles', 'make_roles', 'make_shards', '_create_packs',
                '_distribute_with_users', '_make_role', '_drop_roles', '_grant_functions'
            )
        )
    )
$$;
COMMENT ON FUNCTION heap._tenant_functions() IS
'What the roles of apps may call: all that runs with the caller''s own rights and is not for operators; the compiler; kernels, which read
as the caller; commands, _page_stamps and _changing_pages, which check the caller';

CREATE OR REPLACE FUNCTION heap._grant_functions(tenant name)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    missing text := (
        SELECT string_agg(f.routine::text, ', ') FROM heap._tenant_functions() AS f (routine)
        WHERE NOT EXISTS (
            SELECT FROM pg_proc AS p, aclexplode(p.proacl) AS a
            WHERE p.oid = f.routine AND a.grantee = to_regrole(quote_ident(tenant)) AND a.privilege_type = 'EXECUTE'
        )
    );
BEGIN
    IF missing IS NOT NULL THEN
        EXECUTE format('GRANT EXECUTE ON ROUTINE %s TO %I', missing, tenant);
    END IF;
END
$$;
COMMENT ON FUNCTION heap._grant_functions(name) IS 'Lets a role call the functions of tenants';

CREATE OR REPLACE FUNCTION heap._make_role(role name, purpose text)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    is_plain boolean := (
        SELECT NOT (r.rolcanlogin OR r.rolsuper OR r.rolcreaterole OR r.rolcreatedb OR r.rolreplication OR r.rolbypassrls)
        FROM pg_roles AS r WHERE r.rolname = role
    );
BEGIN
    IF NOT is_plain THEN
        RAISE EXCEPTION 'error: the role "%" exists and is no plain group', role
        USING ERRCODE = 'duplicate_object', HINT = 'rename it: the roles of an app are NOLOGIN and without attributes';
    ELSIF is_plain IS NULL THEN
        EXECUTE format('CREATE ROLE %I NOLOGIN', role);
        EXECUTE format('COMMENT ON ROLE %I IS %L', role, 'heap: ' || purpose);
    END IF;
END
$$;
COMMENT ON FUNCTION heap._make_role(name, text) IS
'Makes a role, or takes the one that is there, such as that of an app of the same name in another database';

CREATE OR REPLACE FUNCTION heap.make_roles(app text DEFAULT null)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    asked text;
BEGIN
    FOR asked IN SELECT a.name FROM heap.app AS a WHERE make_roles.app IS NULL OR a.name = make_roles.app ORDER BY 1 LOOP
        PERFORM heap._make_role('heap_' || asked || '_read', format('reads the app %s', asked));
        PERFORM heap._make_role('heap_' || asked || '_write', format('reads and changes the app %s', asked));
    END LOOP;
END
$$;
COMMENT ON FUNCTION heap.make_roles(text) IS
'Makes the roles heap_<app>_read and heap_<app>_write of an app, or of all, where they are missing';

CREATE OR REPLACE FUNCTION heap.grant_roles(app text DEFAULT null)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    asked text;
    reader text;
    writer text;
    tables text;
BEGIN
    PERFORM heap.make_roles(app);
    FOR asked IN SELECT a.name FROM heap.app AS a WHERE grant_roles.app IS NULL OR a.name = grant_roles.app ORDER BY 1 LOOP
        reader := 'heap_' || asked || '_read';
        writer := 'heap_' || asked || '_write';
        IF NOT pg_has_role(writer, reader, 'USAGE') THEN
            EXECUTE format('GRANT %I TO %I', reader, writer);
        END IF;
        IF NOT has_schema_privilege(reader, quote_ident(asked), 'USAGE') THEN
            EXECUTE format('GRANT USAGE ON SCHEMA %I TO %I', asked, reader);
        END IF;
        tables := (
            SELECT string_agg(format('%I.%I', asked, c.relname), ', ')
            FROM pg_class AS c
            WHERE c.relnamespace = to_regnamespace(quote_ident(asked))
                AND (
                    c.relname IN ('events', 'users', 'merged_users', 'shards', 'packs')
                    OR c.oid IN (
                        SELECT h.inhrelid FROM pg_inherits AS h WHERE h.inhparent = to_regclass(quote_ident(asked) || '.events')
                    )
                    OR c.relname IN (SELECT s.list_table FROM heap.segment_definition AS s WHERE s.app = asked)
                )
                AND NOT has_table_privilege(reader, c.oid, 'SELECT')
        );
        IF tables IS NOT NULL THEN
            EXECUTE format('GRANT SELECT ON %s TO %I', tables, reader);
        END IF;
        IF NOT has_table_privilege(writer, format('%I.users', asked), 'UPDATE') THEN
            EXECUTE format('GRANT INSERT ON %I.events TO %I', asked, writer);
            EXECUTE format('GRANT INSERT, UPDATE ON %I.users TO %I', asked, writer);
        END IF;
        PERFORM heap._grant_functions(reader);
    END LOOP;
END
$$;
COMMENT ON FUNCTION heap.grant_roles(text) IS
'Gives the roles of an app, or of all, the rights they lack. With Citus, call heap.make_roles first, in a transaction of its own';

CREATE OR REPLACE FUNCTION heap._drop_roles(app text)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    role text;
BEGIN
    FOR role IN
        SELECT r.rolname FROM pg_roles AS r
        WHERE r.rolname IN ('heap_' || app || '_read', 'heap_' || app || '_write') ORDER BY 1 DESC
    LOOP
        EXECUTE format('REVOKE ALL ON ALL ROUTINES IN SCHEMA heap FROM %I', role);
        CONTINUE WHEN shobj_description(to_regrole(quote_ident(role)), 'pg_authid') LIKE 'heap: %' IS NOT TRUE;
        BEGIN
            EXECUTE format('DROP ROLE %I', role);
        EXCEPTION WHEN dependent_objects_still_exist THEN
            RAISE WARNING 'the role "%" stays, with its members: other objects or databases refer to it', role;
        END;
    END LOOP;
END
$$;
COMMENT ON FUNCTION heap._drop_roles(text) IS
'Drops the roles of an app that is gone, if heap made them and nothing refers to them, such as an app of the same name in another database';

CREATE OR REPLACE FUNCTION heap.grant_analyst(app text, analyst regrole)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM heap.app AS a WHERE a.name = grant_analyst.app) THEN
        RAISE EXCEPTION 'error: unknown app %', quote_literal(app) USING ERRCODE = 'undefined_object';
    END IF;
    PERFORM heap.grant_roles(app);
    EXECUTE format('GRANT %I TO %s', 'heap_' || app || '_read', analyst);
END
$$;
COMMENT ON FUNCTION heap.grant_analyst(text, regrole) IS
'Lets a role run analyses on one app, and see nothing of the others: gives it heap_<app>_read';
