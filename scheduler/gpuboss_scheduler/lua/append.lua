#!lua flags=allow-oom
-- Append what the scheduler saw to the log, while it leads and has written nothing that it does not know of.
-- KEYS  scheduler events
-- ARGV  token, last seq, new seq, a time in ms or '': none of it is to stand behind that; then type and data of each fact
-- Returns OK and the id of the last fact; AHEAD and the server's time in ms where that is later; or FENCED.
local reign = redis.call('HMGET', KEYS[1], 'epoch', 'leader', 'seq')
local token = (reign[1] or '') .. ' ' .. (reign[2] or '')
if token ~= ARGV[1] or reign[3] ~= ARGV[2] then return {'FENCED', token} end
local latest_ms, id = tonumber(ARGV[4]), nil
if latest_ms then
  local time = redis.call('TIME')
  local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
  if now_ms > latest_ms then return {'AHEAD', string.format('%d', now_ms)} end
end
for i = 5, #ARGV, 2 do id = redis.call('XADD', KEYS[2], '*', 'type', ARGV[i], 'data', ARGV[i + 1]) end
redis.call('HSET', KEYS[1], 'seq', ARGV[3])
return {'OK', id}
