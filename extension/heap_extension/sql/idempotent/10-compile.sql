-- What all commands and analyses come to: text goes in, SQL or an error comes out, nothing is run. The path of the Python
-- packages is written here at installation; as a setting, any role could point it at code of its own.

CREATE OR REPLACE FUNCTION heap._compile(request text, arguments text[])
RETURNS heap._compiled
LANGUAGE plpython3u
VOLATILE
SET search_path = pg_catalog, pg_temp
AS $python$
if "heap" not in GD:
    import gc, site, sys
    gc.disable()  # a third of the time of the imports would go into collections that find nothing
    for name in [name for name in sys.modules if name.startswith("heap_")]:
        del sys.modules[name]
    site.addsitedir("@python_path@")
    sys.path.insert(0, "@python_path@")
    import heap_extension.server
    heap_extension.server.load()
    gc.freeze()  # and later collections need not look through what stays anyway
    gc.set_threshold(10_000)  # a statement makes some thousand objects
    gc.enable()
    GD["heap"] = "@version@"
from heap_extension.server import answer
return answer(plpy, request, arguments)
$python$;
COMMENT ON FUNCTION heap._compile(text, text[]) IS
'Compiles a request (query, create_app, define_event, ...) to SQL. Internal: the other functions run what it returns';

CREATE OR REPLACE FUNCTION heap._raise(compiled heap._compiled)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF compiled.error IS NOT NULL THEN
        RAISE EXCEPTION USING MESSAGE = compiled.error, ERRCODE = compiled.sqlstate;
    END IF;
END
$$;
COMMENT ON FUNCTION heap._raise(heap._compiled) IS 'Raises the error of a compilation, if there is one';

CREATE OR REPLACE FUNCTION heap._analysis(keyword text, statement text)
RETURNS text
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    compiled heap._compiled := heap._compile('analysis', ARRAY[statement, keyword]);
BEGIN
    PERFORM heap._raise(compiled);
    RETURN compiled.statements[1];
END
$$;
COMMENT ON FUNCTION heap._analysis(text, text) IS
'SQL of an analysis whose first word may be left out. Asked again, the EXECUTE of what the session prepared';

CREATE OR REPLACE FUNCTION heap._caller()
RETURNS name
LANGUAGE sql
STABLE
SET search_path = pg_catalog, pg_temp
AS $$ SELECT CASE current_setting('role') WHEN 'none' THEN session_user ELSE current_setting('role')::name END $$;
COMMENT ON FUNCTION heap._caller() IS 'The session''s role, also inside SECURITY DEFINER functions';

CREATE OR REPLACE FUNCTION heap._run_in(app text, request text, arguments text[])
RETURNS void
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET standard_conforming_strings = on
SET client_min_messages = warning
AS $$
DECLARE
    caller name := heap._caller();
    writers oid := (SELECT r.oid FROM pg_roles AS r WHERE r.rolname = 'heap_' || app || '_write');
    compiled heap._compiled;
    command text;
    chosen text := current_setting('heap.app', true);
BEGIN
    IF NOT pg_has_role(caller, current_user, 'USAGE') THEN
        IF NOT EXISTS (SELECT FROM heap.app AS a WHERE a.name = app)
            OR has_schema_privilege(caller, to_regnamespace(quote_ident(app)), 'USAGE') IS NOT TRUE THEN
            RAISE EXCEPTION 'error: unknown app ''%''', app USING ERRCODE = 'undefined_object';
        ELSIF request IN ('create_app', 'drop_app') OR pg_has_role(caller, writers, 'USAGE') IS NOT TRUE THEN
            RAISE EXCEPTION 'error: the role "%" may not change the app ''%''', caller, app
            USING ERRCODE = 'insufficient_privilege', HINT = format('GRANT %I TO %I;', 'heap_' || app || '_write', caller);
        END IF;
    END IF;
    -- One change of an app's catalog at a time: what is compiled next must still be true when it runs. The lock is on a
    -- row: tenants, who could take any advisory lock, cannot take this one.
    PERFORM FROM heap.app AS a WHERE a.name = app FOR NO KEY UPDATE;
    PERFORM set_config('heap.app', app, true);
    compiled := heap._compile(request, arguments);
    PERFORM heap._raise(compiled);
    FOREACH command IN ARRAY compiled.statements LOOP
        EXECUTE command;
    END LOOP;
    PERFORM set_config('heap.app', chosen, true);
END
$$;
COMMENT ON FUNCTION heap._run_in(text, text, text[]) IS
'Compiles a request to commands on an app and runs them as the extension''s owner, if the caller may change that app';

CREATE OR REPLACE FUNCTION heap._run(request text, arguments text[])
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    chosen heap._compiled := heap._compile('app', '{}');  -- among those the caller may use
BEGIN
    PERFORM heap._raise(chosen);
    PERFORM heap._run_in(chosen.statements[1], request, arguments);
END
$$;
COMMENT ON FUNCTION heap._run(text, text[]) IS
'Compiles a request to commands on the chosen app and runs them, all in this transaction';
