CREATE TYPE heap._kernel_totals AS (
    bucket int,
    group_values text[],
    counts bigint[],
    durations bytea
);
COMMENT ON TYPE heap._kernel_totals IS 'What a kernel counts in one bucket and group of one shard, and how long it took, where that is asked for';
