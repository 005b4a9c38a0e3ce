-- PL/Python is untrusted: functions are nobody's but the apps' roles'. They run with the caller's own rights, but for
-- heap._run_in, which checks the caller. What only computes is everybody's: queries call it on the workers.

GRANT USAGE ON SCHEMA heap TO PUBLIC;
REVOKE ALL ON ALL ROUTINES IN SCHEMA heap FROM PUBLIC;
DO $$
DECLARE
    routine regprocedure;
    role name;
BEGIN
    FOR routine IN
        SELECT p.oid FROM pg_catalog.pg_proc AS p
        WHERE p.pronamespace = 'heap'::regnamespace AND p.provolatile = 'i' AND NOT p.prosecdef
    LOOP
        EXECUTE pg_catalog.format('GRANT EXECUTE ON ROUTINE %s TO PUBLIC', routine);
    END LOOP;
    IF heap._has_citus() THEN  -- which tells the workers nothing of roles made in the script of an extension
        FOR role IN
            SELECT r.rolname FROM pg_catalog.pg_roles AS r
            INNER JOIN heap.app AS a ON r.rolname = 'heap_' || a.name || '_read'
        LOOP
            PERFORM heap._grant_functions(role);
        END LOOP;
    ELSE
        PERFORM heap.grant_roles();
    END IF;
END
$$;
