-- The only PL/Python of the extension: text goes in, SQL or an error comes out, nothing is run. The path of the Python
-- packages is written here at installation; as a setting, any role could point it at code of its own.

CREATE OR REPLACE FUNCTION heap._compile(request text, arguments text[])
RETURNS heap._compiled
LANGUAGE plpython3u
VOLATILE
SET search_path = pg_catalog, pg_temp
AS $python$
if "heap" not in GD:
    import gc, os, site, sys
    gc.disable()  # a third of the time of the imports would go into collections that find nothing
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")  # else pydantic looks through every package for some
    for name in [name for name in sys.modules if name.startswith("heap_")]:
        del sys.modules[name]
    site.addsitedir("@python_path@")
    sys.path.insert(0, "@python_path@")
    import heap_extension.server
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
COMMENT ON FUNCTION heap._analysis(text, text) IS 'SQL of an analysis whose first word may be left out';

CREATE OR REPLACE FUNCTION heap._run(request text, arguments text[])
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET standard_conforming_strings = on
SET client_min_messages = warning
AS $$
DECLARE
    compiled heap._compiled;
    command text;
BEGIN
    -- One change of the catalog at a time: what is compiled next must still be true when it runs.
    PERFORM pg_advisory_xact_lock(hashtextextended('heap catalog', 0));
    compiled := heap._compile(request, arguments);
    PERFORM heap._raise(compiled);
    FOREACH command IN ARRAY compiled.statements LOOP
        EXECUTE command;
    END LOOP;
END
$$;
COMMENT ON FUNCTION heap._run(text, text[]) IS 'Compiles a request to commands and runs them, all in this transaction';
