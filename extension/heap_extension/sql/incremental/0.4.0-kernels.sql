CREATE TYPE heap._funnel_totals AS (
    bucket int,
    group_values text[],
    users bigint[],
    immature bigint[],
    durations bytea[]
);
COMMENT ON TYPE heap._funnel_totals IS 'One bucket and group of a funnel in one shard: per step the users who reach it, and how long they took';

ALTER TABLE heap.app ADD COLUMN shards int;
COMMENT ON COLUMN heap.app.shards IS
'How many shards have their row in <app>.shards; kernels are not used while it is null or another number than there are';
