ALTER TABLE heap.event_definition ADD COLUMN gates_patterns boolean NOT NULL DEFAULT false;
COMMENT ON COLUMN heap.event_definition.gates_patterns IS
'Whether its predicate searches for text before it tries a regular expression; not where it was defined before 0.5.0';
