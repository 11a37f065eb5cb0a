-- Take out of the log what it need not hold any more, while the writer leads, the snapshot that stands in for it is the
-- one that the writer knows, and the log is the one that it has read.
-- KEYS  scheduler events snapshot
-- ARGV  token, id of the snapshot, id of an entry that must be there, id from which on entries stay, last id that goes
-- Returns OK and how many entries went, '' if another snapshot is there or none; FENCED; or LOST.
local reign = redis.call('HMGET', KEYS[1], 'epoch', 'leader')
local token = (reign[1] or '') .. ' ' .. (reign[2] or '')
if token ~= ARGV[1] then return {'FENCED', token} end
if redis.pcall('HGET', KEYS[3], 'id') ~= ARGV[2] then return {'OK', ''} end
if #redis.call('XRANGE', KEYS[2], ARGV[3], ARGV[3]) == 0 then return {'LOST', ARGV[3]} end
-- In this order: where memory is full, what frees some is let through, and what comes behind it.
local gone = redis.call('XTRIM', KEYS[2], 'MINID', '=', ARGV[4])
redis.call('HSET', KEYS[1], 'trimmed_through', ARGV[5])
return {'OK', gone}
