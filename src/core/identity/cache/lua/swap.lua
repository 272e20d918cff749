-- Replaces an entry by another, or removes it, if its kind and nonce (17 bytes) are the expected ones. Returns 1 if
-- they were.
-- KEYS[1] the entry. ARGV[1] the expected token, ARGV[2] the new value, empty to remove; ARGV[3] its milliseconds.
local entry = redis.call('GET', KEYS[1])
if entry and string.sub(entry, 1, 17) == ARGV[1] then
  if ARGV[2] == '' then redis.call('DEL', KEYS[1]) else redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3]) end
  return 1
end
return 0
