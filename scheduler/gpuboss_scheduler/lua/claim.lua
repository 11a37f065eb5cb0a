-- Begin a reign, unless somebody began one, or the leader beat, since the claimant looked.
-- KEYS  scheduler events
-- ARGV  epoch seen, alive_until_ms seen, seq seen, new epoch, new seq, data of SchedulerElected, lease of leadership
--       in ms, the cursor if there is none yet, then field and value of what else the hash shows
-- Returns OK, the id of SchedulerElected and the server's time in ms; or LOST.
local seen = redis.call('HMGET', KEYS[1], 'epoch', 'alive_until_ms', 'seq')
if (seen[1] or '') ~= ARGV[1] or (seen[2] or '') ~= ARGV[2] or (seen[3] or '') ~= ARGV[3] then return {'LOST'} end
local id = redis.call('XADD', KEYS[2], '*', 'type', 'SchedulerElected', 'data', ARGV[6])
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('HSET', KEYS[1], 'epoch', ARGV[4], 'seq', ARGV[5],
  'alive_until_ms', string.format('%d', now_ms + ARGV[7]))
redis.call('HSETNX', KEYS[1], 'cursor', ARGV[8])
for i = 9, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
return {'OK', id, string.format('%d', now_ms)}
