-- Replaces a key's entry by a tombstone, or removes it, and appends to the invalidation log. Either way a lease is
-- gone, so no fill that is under way succeeds. Returns the id of the log entry.
-- KEYS[1] the entry, KEYS[2] the log. ARGV[1] the tombstone, empty to remove; ARGV[2] its milliseconds; ARGV[3] the
-- short hash in hex, ARGV[4] the version.
if ARGV[1] == '' then redis.call('DEL', KEYS[1]) else redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2]) end
return redis.call('XADD', KEYS[2], 'MAXLEN', '~', 100000, '*', 'h', ARGV[3], 'v', ARGV[4])
