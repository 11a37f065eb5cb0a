#!lua flags=allow-oom
-- Write rows of one projection outside a commit: the leader's own state, repaired or refreshed.
-- KEYS  scheduler, the hash      ARGV  token, number of fields to delete, these fields, then field and row of each
-- Returns OK; or FENCED.
local reign = redis.call('HMGET', KEYS[1], 'epoch', 'leader')
local token = (reign[1] or '') .. ' ' .. (reign[2] or '')
if token ~= ARGV[1] then return {'FENCED', token} end
local found = redis.call('TYPE', KEYS[2])['ok']
if found ~= 'none' and found ~= 'hash' then redis.call('DEL', KEYS[2]) end
local gone = tonumber(ARGV[2])
for i = 3, 2 + gone do redis.call('HDEL', KEYS[2], ARGV[i]) end
for i = 3 + gone, #ARGV, 2 do redis.call('HSET', KEYS[2], ARGV[i], ARGV[i + 1]) end
return {'OK'}
