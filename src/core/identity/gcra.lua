-- Counts one request by GCRA. Returns whether it is allowed (1 or 0), how many more are, and the microseconds until the
-- next one is allowed and until the whole burst is available.
-- KEYS[1] the key's theoretical arrival time. ARGV[1] microseconds between two requests, ARGV[2] the burst.
local t = redis.call('TIME')
local now = t[1] * 1000000 + t[2]
local interval, burst = tonumber(ARGV[1]), tonumber(ARGV[2])
local tat = math.min(math.max(tonumber(redis.call('GET', KEYS[1]) or now), now), now + interval * burst)
local ahead = tat + interval - now
if ahead > interval * burst then return {0, 0, ahead - interval * burst, tat - now} end
redis.call('SET', KEYS[1], string.format('%d', tat + interval), 'PX', math.ceil(ahead / 1000))
return {1, math.floor((interval * burst - ahead) / interval), 0, ahead}
