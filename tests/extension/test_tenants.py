"""Tenants: logins with the role of one app read, define and wait within it, and nowhere else."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from psycopg import errors, sql
from psycopg.conninfo import make_conninfo

from heap_compiler.analyses import ANALYSES

_PASSWORD = "of the test"
_LOGINS = {
    "ada": "heap_acme_write",
    "rita": "heap_acme_read",
    "bob": "heap_bolt_write",
    "nobody": None,
}
_FUNNEL = "SELECT users FROM heap.funnel('\"Home\" -> \"Bought\" since ''2026-01-01''')"
_OPERATORS_ONLY = {
    "create_app": "makes schemas and roles",
    "drop_app": "drops them",
    "upgrade_apps": "alters tables",
    "grant_roles": "grants",
    "make_roles": "makes roles",
    "grant_analyst": "grants roles",
    "make_shards": "makes tables",
    "_create_packs": "makes tables",
    "_distribute_with_users": "makes shards",
    "_make_pack": "writes packs",
    "_raw_page": "reads pages of any table",
    "_asks_for_huge_pages": "reads the environment of the server",
    "_make_role": "makes roles",
    "_drop_roles": "drops roles",
    "_grant_functions": "grants",
}


@pytest.fixture(scope="module")
def tenants(dsn: str) -> Iterator[str]:
    """Two apps of the same events, and a login for each right."""
    with psycopg.connect(dsn, autocommit=True) as operator:
        _clean(operator)
        for app in ("acme", "bolt"):
            operator.execute("SELECT heap.create_app(%s)", (app,))
        for login, role in _LOGINS.items():
            operator.execute(f"CREATE ROLE {login} LOGIN PASSWORD '{_PASSWORD}'")
            if role is not None:
                operator.execute(f"GRANT {role} TO {login}")
        operator.execute("CREATE SCHEMA lab AUTHORIZATION ada")
        for login, event in (("ada", "Home"), ("bob", "Home"), ("ada", "Bought"), ("bob", "Secret")):
            with _connect(dsn, login) as connection:
                connection.execute("SELECT heap.define_event(%s, %s)", (event, f"pageview where path = '/{event}'"))
        for app in ("acme", "bolt"):
            operator.execute(
                f"INSERT INTO {app}.events (user_id, time, event_id, type, path, properties)"
                " SELECT u, now() - interval '1 day' + i * interval '1 minute', i, 'pageview',"
                " CASE i WHEN 1 THEN '/Home' ELSE '/Bought' END, jsonb_build_object('brand', %s::text)"
                " FROM generate_series(1, 5) AS u, generate_series(1, 2) AS i",
                (app,),
            )
            operator.execute(
                f"INSERT INTO {app}.users (user_id, identity) SELECT u, %s || u FROM generate_series(1, 5) AS u", (app,)
            )
        yield dsn
        _clean(operator)


def _clean(operator: psycopg.Connection[Any]) -> None:
    operator.execute("DROP SCHEMA IF EXISTS lab CASCADE")
    for (app,) in operator.execute("SELECT name FROM heap.app WHERE name IN ('acme', 'bolt', 'cord')").fetchall():
        operator.execute("SELECT heap.drop_app(%s)", (app,))
    for login in _LOGINS:
        operator.execute(f"DROP ROLE IF EXISTS {login}")


@contextmanager
def _connect(dsn: str, login: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(make_conninfo(dsn, user=login, password=_PASSWORD), autocommit=True) as connection:
        connection.execute("SET statement_timeout = '30s'")
        yield connection


def _one(connection: psycopg.Connection[Any], query: str, *arguments: Any) -> Any:
    row = connection.execute(query.encode(), arguments or None).fetchone()
    return row[0] if row else None


def test_a_writer_inserts_defines_and_analyses_its_app(tenants: str) -> None:
    with _connect(tenants, "ada") as ada:
        assert ada.execute(_FUNNEL).fetchall() == [(5,), (5,)]
        with ada.transaction(force_rollback=True):
            ada.execute(
                "INSERT INTO acme.events (user_id, time, event_id, type, path) VALUES (9, now(), 1, 'pageview', '/Home')"
            )
            ada.execute(
                "INSERT INTO acme.users (user_id, identity) VALUES (9, 'nine') ON CONFLICT (user_id) DO UPDATE SET identity = 'nine'"
            )
            assert ada.execute(_FUNNEL).fetchall() == [(6,), (5,)]
        ada.execute('SELECT heap.query(\'define "Either" as "Home" or "Bought"\')')
        assert ada.execute("SELECT name, index_state FROM heap.events ORDER BY 1").fetchall() == [
            ("Bought", "ready"), ("Either", "ready"), ("Home", "ready")]  # fmt: skip
        ada.execute("SELECT heap.drop_event('Either')")
        ada.execute("SELECT heap.define_segment('Buyers', 'users who did \"Bought\"')")
        ada.execute("SELECT heap.list_segment('Buyers')")
        ada.execute("SELECT heap.make_partitions('acme', '2025-01-01', '2025-01-02')")
        assert _one(ada, "SELECT count(*) FROM acme.events_2025_01") == 0
    with _connect(tenants, "rita") as rita:
        counted = "SELECT sum(value) FROM heap.trend('users of any over last 3 days for users in \"Buyers\"')"
        assert _one(rita, counted) == 5
        assert rita.execute("SELECT name, listed_at IS NOT NULL FROM heap.segments").fetchall() == [("Buyers", True)]
    with _connect(tenants, "ada") as ada:
        ada.execute("SELECT heap.unlist_segment('Buyers')")
        ada.execute("SELECT heap.drop_segment('Buyers')")


def _refused(connection: psycopg.Connection[Any], statement: str) -> None:
    with connection.transaction(force_rollback=True), pytest.raises(errors.InsufficientPrivilege):
        connection.execute(statement.encode())


def test_a_reader_runs_every_analysis_and_changes_nothing(tenants: str) -> None:
    with _connect(tenants, "rita") as rita:
        for analysis in ANALYSES:
            assert _one(rita, "SELECT has_function_privilege(%s, 'EXECUTE')", f"heap.{analysis.keyword}(text)")
        assert rita.execute(_FUNNEL).fetchall() == [(5,), (5,)]
        for call in ("query", "explain", "sql"):
            for statement in ('trend users of "Home" by day', "users who did any"):
                assert rita.execute(f"SELECT heap.{call}(%s)", (statement,)).fetchall()
        assert '"Home"' in [row[0] for row in rita.execute("SELECT heap.complete('funnel ')").fetchall()]
        assert _one(rita, "SELECT count(*) FROM heap.index_builds") == 0
        assert _one(rita, "SELECT count(*) FROM heap.partition_health('acme')") > 0
        for change in (
            "SELECT heap.define_event('X', 'purchase')",
            "SELECT heap.query('define \"X\" as purchase')",
            "SELECT heap.drop_event('Home')",
            "SELECT heap.define_segment('X', 'users who did any')",
            "SELECT heap.make_partitions('acme', '2024-01-01', '2024-01-02')",
            "SELECT heap._run_in('acme', 'define_event', ARRAY['X', 'purchase'])",
            "SELECT heap.merge_users(1, 2)",
            "SELECT heap.identify(1, 'one')",
            "SELECT heap.delete_user(1)",
            "SELECT heap.upgrade_apps()",
            "INSERT INTO acme.users (user_id) VALUES (77)",
            "INSERT INTO acme.events (user_id, time, event_id, type) VALUES (7, now(), 1, 'x')",
        ):
            _refused(rita, change)


def test_another_app_cannot_be_read(tenants: str) -> None:
    with _connect(tenants, "ada") as ada:
        assert ada.execute("SELECT name FROM heap.app").fetchall() == [("acme",)]
        for relation in ("event_definition", "events", "segments", "segment_definition", "index_builds", "erased_user"):
            assert _one(ada, f"SELECT count(*) FROM heap.{relation} WHERE app <> 'acme'") == 0
        assert _one(ada, "SELECT count(*) FROM heap.index_health() WHERE app <> 'acme'") == 0
        assert _one(ada, "SELECT count(*) FROM heap.index_health('bolt')") == 0
        assert _one(ada, "SELECT count(*) FROM pg_stats WHERE schemaname = 'bolt'") == 0
        tables = ada.execute("SELECT relname FROM pg_class WHERE relnamespace = (SELECT oid FROM pg_namespace"
                             " WHERE nspname = 'bolt') AND relkind IN ('r', 'p')").fetchall()  # fmt: skip
        assert len(tables) > 5
        for (table,) in tables:
            for attempt in ("SELECT * FROM {}", "COPY {} TO STDOUT", "LOCK TABLE {} IN ACCESS SHARE MODE",
                            "INSERT INTO {} (user_id) VALUES (1)", "TRUNCATE {}"):  # fmt: skip
                _refused(ada, attempt.format(f"bolt.{table}"))


def test_naming_another_app_changes_nothing(tenants: str) -> None:
    with _connect(tenants, "ada") as ada:
        ada.execute("SET heap.app = 'bolt'")
        for call in (
            "heap.query('trend count of any')",
            "heap.query('define \"X\" as purchase')",
            "heap.sql('trend count of any')",
            "heap.explain('trend count of any')",
            "heap.trend('count of \"Secret\"')",
            "heap.define_event('X', 'purchase')",
            "heap.drop_event('Secret')",
            "heap.define_segment('X', 'users who did any')",
            "heap.list_segment('X')",
            "heap.make_partitions('bolt', '2024-01-01', '2024-01-02')",
            "heap.merge_users(1, 2)",
            "heap.identify(1, 'one')",
            "heap.delete_user(1)",
            "heap._run_in('bolt', 'delete_user', ARRAY['1'])",
            "heap._run('define_event', ARRAY['X', 'purchase'])",
            "heap._run_in('bolt', 'define_event', ARRAY['X', 'purchase'])",
            "heap._run_in('bolt', 'drop_event', ARRAY['Secret'])",
        ):
            with pytest.raises(errors.UndefinedObject, match="unknown app 'bolt'"):
                ada.execute(f"SELECT {call}")
        shown = " ".join(row[0] for row in ada.execute("SELECT heap.complete('funnel ')").fetchall())
        assert "Secret" not in shown
        _refused(ada, "SELECT heap._run_in('acme', 'drop_app', ARRAY['bolt'])")
        _refused(ada, "SELECT heap._run_in('acme', 'create_app', ARRAY['cord'])")
        requests = ("statement", "analysis", "define_event", "drop_event", "list_segment", "make_partitions", "app")
        for request in (*requests, "drop_app"):
            error = _one(ada, "SELECT error FROM heap._compile(%s, ARRAY['bolt', 'trend'])", request)
            assert "unknown app 'bolt'" in error
    with _connect(tenants, "bob") as bob:
        assert bob.execute("SELECT name FROM heap.events ORDER BY 1").fetchall() == [("Home",), ("Secret",)]


def test_a_writer_merges_identifies_and_erases_users_of_its_app_only(tenants: str) -> None:
    """What a reader is refused, and of another app everybody, is tested above."""
    with _connect(tenants, "ada") as ada:
        ada.execute(
            "INSERT INTO acme.events (user_id, time, event_id, type) VALUES (801, now(), 1, 'x'), (802, now(), 2, 'x')"
        )
        assert _one(ada, "SELECT heap.identify(801, 'eight')") == _one(ada, "SELECT heap.identify(802, 'eight')")
        ada.execute("SELECT heap.merge_users(803, 801)")
        asked = "SELECT count(*) FROM (SELECT app, user_id FROM heap.{} UNION SELECT app, user_id FROM heap.{}) AS u"
        waiting = asked.format("user_alias", "user_merge")
        assert _one(ada, waiting) == 3
    with _connect(tenants, "bob") as bob:
        assert _one(bob, waiting) == 0
        assert bob.execute("SELECT * FROM heap.delete_user(801)").fetchall() == []
    with _connect(tenants, "ada") as ada:
        assert dict(ada.execute("SELECT * FROM heap.delete_user(802)").fetchall())["acme.events"] == 2
        assert _one(ada, waiting) == 0
        assert _one(ada, "SELECT count(*) FROM heap.erased_user") == 4
        assert _one(ada, "SELECT count(*) FROM acme.events WHERE user_id IN (801, 802)") == 0


def test_another_app_is_unknown_in_the_same_words_as_none(tenants: str) -> None:
    with _connect(tenants, "ada") as ada:
        said = []
        for app in ("bolt", "cold"):
            ada.execute(f"SET heap.app = '{app}'")
            for call in ("heap.query('trend count of any')", f"heap._run_in('{app}', 'drop_event', ARRAY['X'])"):
                with pytest.raises(errors.UndefinedObject) as raised:
                    ada.execute(f"SELECT {call}")
                said.append((raised.value.diag.message_primary or "").replace(app, "?"))
        assert said[:2] == said[2:]


def test_tenants_can_change_nothing_they_were_not_given(tenants: str) -> None:
    with _connect(tenants, "ada") as ada:
        ada.execute("CREATE OR REPLACE FUNCTION lab.trap() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN new; END'")
        ada.execute(
            "CREATE OR REPLACE FUNCTION lab.trap_ddl() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN NULL; END'"
        )
        for attempt in (
            "SET ROLE heap_bolt_write",
            "SET ROLE heap_bolt_read",
            "SET ROLE heap",
            "SET SESSION AUTHORIZATION bob",
            "GRANT heap_acme_read TO bob",
            "GRANT heap_bolt_write TO ada",
            "SELECT heap.grant_analyst('bolt', 'ada')",
            "SELECT heap.grant_roles()",
            "SELECT heap._make_role('mine', '')",
            "SELECT heap._drop_roles('bolt')",
            "SELECT heap._grant_functions('nobody')",
            "SELECT heap.create_app('cord')",
            "SELECT heap.drop_app('acme')",
            "CREATE TABLE heap.mine ()",
            "CREATE TABLE acme.mine ()",
            "CREATE FUNCTION heap.mine() RETURNS int LANGUAGE sql AS 'SELECT 1'",
            "CREATE FUNCTION acme.hashtext(text) RETURNS int LANGUAGE sql AS 'SELECT 1'",
            "CREATE FUNCTION lab.python() RETURNS int LANGUAGE plpython3u AS 'return 1'",
            "DO LANGUAGE plpython3u 'pass'",
            "CREATE EVENT TRIGGER trap ON ddl_command_end EXECUTE FUNCTION lab.trap_ddl()",
            "CREATE TRIGGER trap BEFORE INSERT ON acme.users FOR EACH ROW EXECUTE FUNCTION lab.trap()",
            "CREATE TRIGGER trap BEFORE INSERT ON heap.event_definition FOR EACH ROW EXECUTE FUNCTION lab.trap()",
            "CREATE RULE trap AS ON INSERT TO acme.events DO INSTEAD NOTHING",
            "CREATE INDEX ON acme.events (path)",
            "ALTER TABLE acme.events ADD COLUMN mine int",
            "DROP TABLE acme.events",
            "TRUNCATE acme.events",
            "DELETE FROM acme.events",
            "UPDATE acme.events SET path = ''",
            "ALTER FUNCTION heap.query(text) SECURITY DEFINER",
            "ALTER POLICY own_apps ON heap.app USING (true)",
            "ALTER TABLE heap.app DISABLE ROW LEVEL SECURITY",
            "SET session_replication_role = replica",
            "INSERT INTO heap.event_definition (app, name, definition, predicate, uses)"
            " VALUES ('acme', 'X', '', 'lab.trap()', '{}')",
            "UPDATE heap.event_definition SET predicate = 'true'",
            "DELETE FROM heap.segment_definition",
            "UPDATE heap.app SET version = 0",
            "INSERT INTO heap.user_alias VALUES ('acme', 1, 2)",
            "INSERT INTO heap.user_merge (app, user_id, merged_into, batch) VALUES ('acme', 1, 2, 1)",
            "DELETE FROM heap.erased_user",
            "UPDATE heap.settings SET builds_per_node = 64",
            "SELECT nextval('heap.catalog_version')",
            "SELECT * FROM heap.write_key",
            "INSERT INTO heap.write_key (key, app) VALUES ('mine', 'acme')",
            "UPDATE heap.write_key SET revoked_at = NULL",
            "SELECT * FROM heap.app FOR KEY SHARE",
            "SELECT * FROM heap.event_definition FOR UPDATE",
            "LOCK TABLE heap.app IN SHARE MODE",
        ):
            _refused(ada, attempt)


def test_functions_are_granted_by_rule_or_withheld_for_a_reason(tenants: str) -> None:
    """A function that is added later is granted to tenants, or named above with the reason why not."""
    with psycopg.connect(tenants) as operator:
        functions = operator.execute(
            "SELECT p.oid::regprocedure::text, p.proname, l.lanname, p.prosecdef, p.provolatile = 'i',"
            " has_function_privilege('rita', p.oid, 'EXECUTE'), has_function_privilege('nobody', p.oid, 'EXECUTE')"
            " FROM pg_proc AS p JOIN pg_language AS l ON l.oid = p.prolang WHERE pronamespace = 'heap'::regnamespace"
        ).fetchall()
    in_python = {name for _, name, language, *_ in functions if language == "plpython3u"}
    kernels = {f"_{name}_kernel" for name in ("funnel", "counting", "paths", "sessions", "attribution", "correlate")}
    computing = {"_average_duration", "_duration_counts", "_duration_quantiles"}
    pages = {"_page_stamps", "_changing_pages"}
    assert in_python == {"_compile", "_make_pack", "_asks_for_huge_pages"} | pages | kernels | computing
    assert {name for _, name, _, is_definer, *_ in functions if is_definer} == {"_run_in"} | pages
    assert {name for _, name, *_, tenant, _ in functions if not tenant} == set(_OPERATORS_ONLY)
    for signature, _, _, _, only_computes, _, anybody in functions:
        assert anybody == only_computes, signature
    with _connect(tenants, "nobody") as nobody:
        assert nobody.execute("SELECT * FROM heap.app").fetchall() == []
        for call in ("heap._compile('app', '{}')", "heap.query('trend count of any')", "heap._has_citus()"):
            _refused(nobody, f"SELECT {call}")


def test_shadowed_names_are_not_called(tenants: str) -> None:
    """Functions, operators, types and tables in front of the search path, made to tell who calls them."""
    with _connect(tenants, "ada") as ada:
        for command in (
            "CREATE TABLE lab.called (who name, what text)",
            "CREATE FUNCTION lab.hashtext(text) RETURNS int LANGUAGE plpgsql IMMUTABLE AS"
            " $$ BEGIN INSERT INTO lab.called VALUES (current_user, 'hashtext'); RETURN 1; END $$",
            "CREATE FUNCTION lab.equal(text, text) RETURNS boolean LANGUAGE plpgsql IMMUTABLE AS"
            " $$ BEGIN INSERT INTO lab.called VALUES (current_user, '='); RETURN true; END $$",
            "CREATE OPERATOR lab.= (LEFTARG = text, RIGHTARG = text, FUNCTION = lab.equal)",
            "CREATE FUNCTION lab.now() RETURNS timestamptz LANGUAGE plpgsql AS"
            " $$ BEGIN INSERT INTO lab.called VALUES (current_user, 'now'); RETURN 'epoch'; END $$",
            "CREATE FUNCTION lab.set_config(text, text, boolean) RETURNS text LANGUAGE sql AS 'SELECT NULL'",
            "CREATE FUNCTION lab._compile(text, text[]) RETURNS heap._compiled LANGUAGE sql AS"
            " $$ SELECT ROW('define', ARRAY['DROP SCHEMA bolt CASCADE'], NULL, NULL)::heap._compiled $$",
            "CREATE TYPE lab.regclass AS (a int)",
            "CREATE FUNCTION pg_temp.hashtext(text) RETURNS int LANGUAGE sql AS 'SELECT 1'",
            "CREATE TEMP TABLE app (name text)",
            "CREATE TEMP TABLE pg_roles (oid oid, rolname name)",
            "CREATE TEMP TABLE settings (index_builds text)",
            "SET search_path = lab, pg_temp, heap, bolt, pg_catalog",
        ):
            ada.execute(command.encode())
        ada.execute("SELECT heap.define_event('Shadow', 'pageview where path = ''/Home'' and brand = ''acme'' ')")
        ada.execute("SELECT heap.define_segment('Shadows', 'users who did \"Shadow\"')")
        ada.execute("SELECT heap.list_segment('Shadows')")
        ada.execute("SELECT heap.make_partitions('acme', '2024-03-01', '2024-03-02')")
        assert ada.execute(_FUNNEL).fetchall() == [(5,), (5,)]
        ada.execute("SELECT heap.drop_segment('Shadows')")
        ada.execute("SELECT heap.drop_event('Shadow')")
        ada.execute("RESET search_path")
        assert ada.execute("SELECT * FROM lab.called").fetchall() == []


@pytest.mark.parametrize("name", [
    "it's", 'a"b', "x'; DROP SCHEMA bolt CASCADE; --", '"; DROP TABLE heap.app; --', "bolt.events", "$$", "$command$",
    "%I %s", "\\' ; SELECT", "pg_temp", "ünïcode",
])  # fmt: skip
def test_crafted_names_are_names(tenants: str, name: str) -> None:
    with _connect(tenants, "ada") as ada:
        path, quoted = name.replace("'", "''"), name.replace('"', '""')
        ada.execute("SELECT heap.define_event(%s, %s)", (name, f"pageview where path = '{path}'"))
        ada.execute("SELECT heap.define_segment(%s, %s)", (name, f'users who did "{quoted}"'))
        ada.execute("SELECT heap.list_segment(%s)", (name,))
        assert ada.execute("SELECT users FROM heap.funnel(%s, 'Home')", (name,)).fetchall() == [(0,), (0,)]
        assert (name, "ready") in ada.execute("SELECT name, index_state FROM heap.events").fetchall()
        ada.execute("SELECT heap.drop_segment(%s)", (name,))
        ada.execute("SELECT heap.drop_event(%s)", (name,))
        ada.execute("SELECT set_config('heap.app', %s, false)", (name,))
        with pytest.raises(errors.UndefinedObject):
            ada.execute("SELECT heap.query('trend count of any')")
    with _connect(tenants, "bob") as bob:
        assert _one(bob, "SELECT count(*) FROM bolt.events") == 10


@pytest.mark.parametrize("definition", [
    "pageview where path = pg_read_file('/etc/passwd')", "pageview where pg_sleep(10) is set", "bolt.events",
    '"Secret"', 'bolt."Secret"', "pageview where path = (select definition from heap.event_definition)",
    "pageview where path matches '(' || lab.leak()", "pageview where path matches '('", "pageview) or (select true",
    "pageview where path = '/a'; drop schema bolt cascade",
])  # fmt: skip
def test_definitions_call_nothing_and_name_no_other_app(tenants: str, definition: str) -> None:
    with _connect(tenants, "ada") as ada:
        for call in (b"heap.define_event('X', %s)", b"heap.define_segment('X', 'users who did ' || %s)"):
            with pytest.raises(psycopg.Error, match=r"^error"):
                ada.execute(b"SELECT " + call, (definition,))


def test_conditions_of_a_tenant_do_not_see_hidden_rows(tenants: str) -> None:
    """A cheap function that tells its argument does not run before row-level security."""
    with _connect(tenants, "ada") as ada:
        seen: list[str] = []
        ada.add_notice_handler(lambda notice: seen.append(notice.message_primary or ""))
        ada.execute(
            "CREATE FUNCTION lab.tell(text) RETURNS boolean LANGUAGE plpgsql COST 0.0001 AS"
            " $$ BEGIN RAISE NOTICE '%', $1; RETURN true; END $$"
        )
        ada.execute(
            "CREATE VIEW lab.peek AS SELECT * FROM heap.event_definition WHERE lab.tell(app || name || definition)"
        )
        for relation in ("lab.peek", "heap.event_definition", "heap.events", "heap.app"):
            ada.execute(f"SELECT count(*) FROM {relation} WHERE lab.tell(name)".encode())
        assert seen
        assert not [text for text in seen if "bolt" in text or "Secret" in text]


def test_a_session_that_changes_its_role_changes_what_it_sees(tenants: str) -> None:
    """Plans and compiled statements are kept for a session, not for a role."""
    with psycopg.connect(tenants, autocommit=True) as operator:
        for login, app in (("ada", "acme"), ("bob", "bolt"), ("ada", "acme")):
            operator.execute(f"SET SESSION AUTHORIZATION {login}".encode())
            assert operator.execute("SELECT DISTINCT app FROM heap.events").fetchall() == [(app,)]
            statement = 'trend users of "Home" over last 3 days group by brand'
            assert _one(operator, "SELECT heap.query(%s)", statement)["group_key"] == app
            operator.execute("RESET SESSION AUTHORIZATION")


def test_a_function_of_one_tenant_does_not_change_its_app_for_another(tenants: str) -> None:
    with _connect(tenants, "ada") as ada, _connect(tenants, "bob") as bob:
        ada.execute(
            "CREATE FUNCTION lab.define() RETURNS void LANGUAGE sql SECURITY DEFINER AS"
            " $$ SELECT heap.define_event('X', 'purchase') $$"
        )
        ada.execute("GRANT USAGE ON SCHEMA lab TO PUBLIC")
        with pytest.raises(errors.UndefinedObject):
            bob.execute("SELECT lab.define()")


def test_an_open_transaction_of_one_app_delays_no_other(tenants: str) -> None:
    with _connect(tenants, "ada") as ada, _connect(tenants, "bob") as bob:
        ada.execute("BEGIN")
        ada.execute(
            "SELECT pg_advisory_lock(hashtextextended(key, 0))"
            " FROM unnest(ARRAY['heap catalog', 'heap catalog bolt', 'bolt']) AS key"
        )
        ada.execute("SELECT heap.define_event('Held', 'purchase')")
        ada.execute("SELECT heap.define_segment('Held', 'users who did \"Home\"')")
        ada.execute("SELECT heap.list_segment('Held')")
        ada.execute("SELECT heap.make_partitions('acme', '2024-05-01', '2024-05-02')")
        ada.execute("LOCK TABLE acme.users IN ACCESS EXCLUSIVE MODE")
        bob.execute("SET lock_timeout = '2s'")
        bob.execute("SELECT heap.define_event('Free', 'purchase')")
        bob.execute("SELECT heap.define_segment('Free', 'users who did \"Home\"')")
        bob.execute("SELECT heap.list_segment('Free')")
        bob.execute("SELECT heap.make_partitions('bolt', '2024-05-01', '2024-05-02')")
        assert bob.execute("SELECT users FROM heap.funnel('Home', 'Free')").fetchall() == [(5,), (0,)]
        assert _one(bob, "SELECT count(*) FROM heap.events WHERE index_state = 'ready'") == 3
        bob.execute("SELECT heap.drop_segment('Free')")
        bob.execute("SELECT heap.drop_event('Free')")
        ada.execute("ROLLBACK")


def test_two_changes_of_one_app_wait_for_each_other(tenants: str) -> None:
    with _connect(tenants, "ada") as ada, _connect(tenants, "ada") as other:
        ada.execute("BEGIN")
        ada.execute("SELECT heap.define_event('Waited', 'purchase')")
        waiting = threading.Thread(target=other.execute, args=("SELECT heap.define_event('Upon', '\"Waited\"')",))
        waiting.start()
        waiting.join(0.5)
        assert waiting.is_alive()
        ada.execute("COMMIT")
        waiting.join(20)
        assert not waiting.is_alive()
        other.execute("SELECT heap.drop_event('Upon')")
        other.execute("SELECT heap.drop_event('Waited')")


_ROLES = "SELECT array_agg(rolname::text ORDER BY 1) FROM pg_roles WHERE rolname ~ '^heap_cord_'"


def test_roles_come_and_go_with_their_app(tenants: str) -> None:
    with psycopg.connect(tenants, autocommit=True) as operator:
        operator.execute("SELECT heap.create_app('cord')")
        operator.execute("GRANT heap_cord_write TO nobody")
        assert _one(operator, _ROLES) == ["heap_cord_read", "heap_cord_write"]
        operator.execute("SELECT heap.drop_app('cord')")
        assert _one(operator, _ROLES) is None


def test_a_role_that_was_there_is_taken_only_as_a_plain_group(tenants: str) -> None:
    with psycopg.connect(tenants, autocommit=True) as operator:
        operator.execute("CREATE ROLE heap_cord_read LOGIN")
        with pytest.raises(errors.DuplicateObject, match="no plain group"):
            operator.execute("SELECT heap.create_app('cord')")
        operator.execute("ALTER ROLE heap_cord_read NOLOGIN")
        operator.execute("SELECT heap.create_app('cord')")
        operator.execute("SELECT heap.drop_app('cord')")
        assert _one(operator, _ROLES) == ["heap_cord_read"], "what heap did not make it does not drop"
        operator.execute("DROP ROLE heap_cord_read")


def test_an_app_from_before_gets_its_roles(tenants: str) -> None:
    with psycopg.connect(tenants, autocommit=True) as operator:
        operator.execute("SELECT heap.create_app('cord')")
        for role in ("heap_cord_write", "heap_cord_read"):
            operator.execute(sql.SQL("DROP OWNED BY {}").format(sql.Identifier(role)))
            operator.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(role)))
        operator.execute("SELECT heap.make_roles()")
        operator.execute("SELECT heap.grant_roles()")
        operator.execute("GRANT heap_cord_write TO nobody")
        with _connect(tenants, "nobody") as nobody:
            nobody.execute("SELECT heap.define_event('A', 'purchase')")
            nobody.execute("INSERT INTO cord.events (user_id, time, event_id, type) VALUES (1, now(), 1, 'purchase')")
            assert nobody.execute("SELECT users FROM heap.funnel('A', 'A')").fetchall() == [(1,), (0,)]
        operator.execute("SELECT heap.drop_app('cord')")


def test_a_kernel_reads_what_its_caller_may_and_changes_nothing(tenants: str) -> None:
    """Whoever may call it can write a specification of their own."""

    def asked(app: str, condition: str = "true") -> str:
        scan = {"alias": "step", "where": [condition], "definition": None}
        always = {"start": 0, "end": 10**15, "first_since": None}
        events = {"scans": [scan], **always, "values": ["path"], "size": None}
        entered = {"events": events, "within": None, "before": []}
        steps = [entered, {"events": {**events, "values": []}, "within": None, "before": [0]}]
        groups = {"group_keys": ["group_1"], "group_step": 0, "group_of_user": None, "user_keys": [], "users": None}
        limits = {
            "window": 1,
            "rules": None,
            "effort": False,
            "now": 0,
            "buckets": [],
            "slice": 1_000,
            "probe_cost": 15,
        }
        return sql.quote(json.dumps({"schema": app, "steps": steps, **groups, **limits}))

    def call(app: str, condition: str = "true") -> bytes:
        call = f"heap._funnel_kernel(tableoid, {asked(app, condition)})"
        return f"SELECT (t).group_values, sum((t).users[1]) FROM (SELECT {call} AS t FROM acme.shards) AS s GROUP BY 1".encode()

    with _connect(tenants, "ada") as ada:
        assert ada.execute(call("acme")).fetchall() == [(["/Home"], 5)]
        of_all_shards = "SELECT group_values, sum(users[1]) FROM heap._funnel_kernels({}, {}) GROUP BY 1"
        assert ada.execute(of_all_shards.format("'acme'", asked("acme")).encode()).fetchall() == [(["/Home"], 5)]
        for shards in ("acme", "bolt"):
            _refused(ada, of_all_shards.format(f"'{shards}'", asked("bolt")))
        _refused(ada, of_all_shards.format("'bolt'", asked("acme")))
        with pytest.raises(psycopg.errors.UndefinedTable):
            ada.execute(of_all_shards.format("'acme.shards, bolt'", asked("acme")).encode())
        _refused(ada, call("bolt").decode())
        for attempt in (
            "user_id IN (DELETE FROM acme.users RETURNING user_id)",
            "true) ORDER BY 1) AS x; UPDATE acme.users SET identity = NULL; SELECT 1 FROM (SELECT * FROM acme.events WHERE (true",
            "user_id IN (SELECT user_id FROM bolt.events)",
        ):
            with pytest.raises(psycopg.Error):
                ada.execute(call("acme", condition=attempt))
        assert _one(ada, "SELECT count(identity) FROM acme.users") == 5
