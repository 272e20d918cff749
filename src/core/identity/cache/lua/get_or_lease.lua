-- Reads an entry; if there is none, writes the lease. Returns the entry, or nil when the lease was written.
-- KEYS[1] the entry. ARGV[1] the lease, ARGV[2] its milliseconds.
local entry = redis.call('GET', KEYS[1])
if entry then return entry end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return false
