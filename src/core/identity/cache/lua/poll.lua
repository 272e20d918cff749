-- Reads the invalidation log after an entry, and registers in the same step how far the process has applied it; so the
-- order of the two needs no argument. Returns epoch, oldest id, newest id, then id and short hash of each entry.
-- KEYS[1] the epoch, KEYS[2] the log, KEYS[3] the processes. ARGV[1] a nonce for a new epoch; ARGV[2] the last applied
-- id, empty to read only the end; ARGV[3] the process, empty not to register; ARGV[4] the most entries to return.
local t = redis.call('TIME')
local now = string.format('%d', t[1] * 1000 + math.floor(t[2] / 1000))
local epoch = redis.call('GET', KEYS[1])
if not epoch then
  epoch = ARGV[1] .. '@' .. now
  redis.call('SET', KEYS[1], epoch)
end
local newest = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)
newest = newest[1] and newest[1][1] or '0-0'
local oldest, entries = '0-0', {}
if ARGV[2] ~= '' then
  local first = redis.call('XRANGE', KEYS[2], '-', '+', 'COUNT', 1)
  oldest = first[1] and first[1][1] or '0-0'
  for _, entry in ipairs(redis.call('XRANGE', KEYS[2], '(' .. ARGV[2], '+', 'COUNT', ARGV[4])) do
    entries[#entries + 1] = entry[1]
    entries[#entries + 1] = entry[2][2]
  end
  if ARGV[3] ~= '' then
    redis.call('HSET', KEYS[3], ARGV[3], ARGV[2] .. ' ' .. now)
  end
end
return {epoch, oldest, newest, unpack(entries)}
