#!lua flags=allow-oom
-- Begin a reign, unless somebody began one, or the leader beat, or entries of the log went, since the claimant looked.
--
-- All that it found stands in the log as soon as anybody can see who leads. Where entries of the log were lost, whoever
-- asked since must be decided after SchedulerElected, which says so: what is not decided yet moves behind it, under
-- new ids; what a scheduler found goes, and so does a snapshot of what is no more there.
-- KEYS  scheduler events snapshot
-- ARGV  epoch seen, alive_until_ms seen, seq seen, new epoch, seq of the last fact, lease of leadership in ms, the
--       cursor, what was lost: '' (nothing), 'log' or 'snapshot' (it stands for more than is there), the last entry
--       that was read, or '', the last that was applied or is known to be deleted, how many fields and values an entry
--       has at most that moves; then, each with their number first: types and data of facts, the first
--       SchedulerElected; fields and values of what the hash shows; then entries to move, each as: id, how many fields
--       and values it has, these; with none it only goes
-- Returns OK, the ids of the first and the last fact; or LOST.
local seen = redis.call('HMGET', KEYS[1], 'epoch', 'alive_until_ms', 'seq')
if (seen[1] or '') ~= ARGV[1] or (seen[2] or '') ~= ARGV[2] or (seen[3] or '') ~= ARGV[3] then return {'LOST'} end
if ARGV[9] ~= '' and #redis.call('XRANGE', KEYS[2], ARGV[9], ARGV[9]) == 0 then return {'LOST'} end
-- What came in after the claimant read moves as well: it must not be decided as if nothing had been lost.
local late = {}
if ARGV[8] ~= '' then late = redis.call('XRANGE', KEYS[2], ARGV[9] == '' and '-' or '(' .. ARGV[9], '+') end
local first, last
local at = 13
for _ = 1, ARGV[12] do
  last = redis.call('XADD', KEYS[2], '*', 'type', ARGV[at], 'data', ARGV[at + 1])
  first = first or last
  at = at + 2
end
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('HSET', KEYS[1], 'epoch', ARGV[4], 'seq', ARGV[5], 'last_id', last,
  'alive_until_ms', string.format('%d', now_ms + ARGV[6]))
redis.call(ARGV[8] == '' and 'HSETNX' or 'HSET', KEYS[1], 'cursor', ARGV[7])
if ARGV[8] == 'snapshot' then redis.call('DEL', KEYS[3]) end
if ARGV[8] ~= '' then
  -- What is deleted below is no loss, and what was before is said to be one.
  redis.call('HSET', KEYS[1], 'read_through', last)
else
  -- Who leads first, and dies before its first beat, must leave something to go by.
  redis.call('HSETNX', KEYS[1], 'read_through', ARGV[10])
end
local shown = ARGV[at]
at = at + 1
for _ = 1, shown do
  redis.call('HSET', KEYS[1], ARGV[at], ARGV[at + 1])
  at = at + 2
end
while at < #ARGV do
  local from, to = at + 2, at + 1 + ARGV[at + 1]
  if from <= to then redis.call('XADD', KEYS[2], '*', unpack(ARGV, from, to)) end
  redis.call('XDEL', KEYS[2], ARGV[at])
  at = to + 1
end
for _, entry in ipairs(late) do
  if #entry[2] <= tonumber(ARGV[11]) then
    redis.call('XADD', KEYS[2], '*', unpack(entry[2]))
    redis.call('XDEL', KEYS[2], entry[1])
  end
end
return {'OK', first, last}
