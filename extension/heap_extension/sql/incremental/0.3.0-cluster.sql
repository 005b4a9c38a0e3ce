-- It takes a number of shards now.
DROP FUNCTION IF EXISTS heap.create_app(text, text);
