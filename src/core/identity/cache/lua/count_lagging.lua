-- Counts the processes that polled a moment ago and have not applied a log entry. Returns -1 when Redis may not know
-- all processes: only after its epoch is older than ARGV[3] has every process that may still use what it keeps polled
-- since Redis lost its data. That is decided here and not when the entry was appended, since Redis may have lost its
-- data in between.
-- KEYS[1] the processes, KEYS[2] the epoch. ARGV[1], ARGV[2] the entry's milliseconds and sequence number; ARGV[3]
-- milliseconds after which a process that has not polled uses nothing that it keeps. Processes silent for an hour are
-- removed.
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local born = string.match(redis.call('GET', KEYS[2]) or '', '@(%d+)$')
if not born or now - born < tonumber(ARGV[3]) then return -1 end
local lagging = 0
local all = redis.call('HGETALL', KEYS[1])
for i = 1, #all, 2 do
  local ms, seq, polled = string.match(all[i + 1], '^(%d+)-(%d+) (%d+)$')
  if not polled or now - polled > 3600000 then
    redis.call('HDEL', KEYS[1], all[i])
  elseif now - polled < tonumber(ARGV[3]) then
    ms, seq = tonumber(ms), tonumber(seq)
    local wanted_ms, wanted_seq = tonumber(ARGV[1]), tonumber(ARGV[2])
    if ms < wanted_ms or (ms == wanted_ms and seq < wanted_seq) then lagging = lagging + 1 end
  end
end
return lagging
