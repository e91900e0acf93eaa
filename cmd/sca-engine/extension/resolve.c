// SPDX-License-Identifier: Apache-2.0
#include "resolve.h"

#include "code.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* As many decorators around one function are followed. */
#define MAX_WRAPPERS 32

static PyObject *function_type, *method_type, *staticmethod_type, *classmethod_type, *property_type;
static PyObject *getset_type, *member_type, *code_type;
static PyObject *type_mro, *type_dict,
	*type_name; /* descriptors: read by them, no metaclass has a say */
static PyObject *static_func, *class_func, *method_func, *property_parts[3];

static PyObject *attribute_of(const char *module, const char *name)
{
	PyObject *object = PyImport_ImportModule(module);
	PyObject *value = object ? PyObject_GetAttrString(object, name) : NULL;

	Py_XDECREF(object);
	return value;
}

static PyObject *descriptor_of(PyObject *type, const char *name)
{
	PyObject *dict = type ? PyObject_GetAttrString(type, "__dict__") : NULL;
	PyObject *value = dict ? PyMapping_GetItemString(dict, name) : NULL;

	Py_XDECREF(dict);
	return value;
}

int sca_resolve_init(void)
{
	function_type = attribute_of("types", "FunctionType");
	method_type = attribute_of("types", "MethodType");
	getset_type = attribute_of("types", "GetSetDescriptorType");
	member_type = attribute_of("types", "MemberDescriptorType");
	code_type = attribute_of("types", "CodeType");
	staticmethod_type = attribute_of("builtins", "staticmethod");
	classmethod_type = attribute_of("builtins", "classmethod");
	property_type = attribute_of("builtins", "property");
	type_mro = descriptor_of((PyObject *)&PyType_Type, "__mro__");
	type_dict = descriptor_of((PyObject *)&PyType_Type, "__dict__");
	type_name = descriptor_of((PyObject *)&PyType_Type, "__name__");
	static_func = descriptor_of(staticmethod_type, "__func__");
	class_func = descriptor_of(classmethod_type, "__func__");
	method_func = descriptor_of(method_type, "__func__");
	property_parts[0] = descriptor_of(property_type, "fget");
	property_parts[1] = descriptor_of(property_type, "fset");
	property_parts[2] = descriptor_of(property_type, "fdel");
	return PyErr_Occurred() ? -1 : 0;
}

/* Reads through a C descriptor. */
static PyObject *get(PyObject *descriptor, PyObject *object)
{
	return PyObject_CallMethod(descriptor, "__get__", "(O)", object);
}

PyObject *sca_type_name(PyObject *class)
{
	return get(type_name, class);
}

static int is_instance(PyObject *object, PyObject *type)
{
	return type && PyType_IsSubtype(Py_TYPE(object), (PyTypeObject *)type);
}

/* Looks a name up in a class and its bases. A new reference, or NULL with or without exception. */
static PyObject *class_lookup(PyObject *class, const char *name)
{
	PyObject *mro = get(type_mro, class), *value = NULL;
	Py_ssize_t i;

	for (i = 0; mro && PyTuple_Check(mro) && !value && i < PyTuple_Size(mro); i++) {
		PyObject *dict = get(type_dict, PyTuple_GetItem(mro, i));

		value = dict ? PyMapping_GetItemString(dict, name) : NULL;
		Py_XDECREF(dict);
		if (!value && PyErr_ExceptionMatches(PyExc_KeyError))
			PyErr_Clear();
		if (PyErr_Occurred())
			break;
	}
	Py_XDECREF(mro);
	return value;
}

static int is_c_descriptor(PyObject *object)
{
	return (PyObject *)Py_TYPE(object) == getset_type ||
	       (PyObject *)Py_TYPE(object) == member_type;
}

/* The value of a class attribute that C keeps in each instance (a slot, a getset); else NULL. */
static PyObject *instance_slot(PyObject *object, const char *name)
{
	PyObject *descriptor = class_lookup((PyObject *)Py_TYPE(object), name), *value = NULL;

	if (descriptor && is_c_descriptor(descriptor)) {
		value = get(descriptor, object);
		if (!value && PyErr_ExceptionMatches(PyExc_AttributeError))
			PyErr_Clear(); /* an empty slot */
	}
	Py_XDECREF(descriptor);
	return value;
}

/* Looks a name up in an instance's own dictionary. */
static PyObject *instance_dict_lookup(PyObject *object, const char *name)
{
	PyObject *dict = instance_slot(object, "__dict__"), *value = NULL;

	if (dict && PyDict_Check(dict))
		value = PyDict_GetItemString(dict, name);
	Py_XINCREF(value);
	Py_XDECREF(dict);
	return value;
}

/* Looks a private name up as the compiler mangles it in a class: __name in class C is _C__name. */
static PyObject *mangled_lookup_in(PyObject *class, const char *name)
{
	PyObject *class_name = sca_type_name(class), *bytes = NULL, *value = NULL;
	char mangled[1024];

	if (class_name && PyUnicode_Check(class_name))
		bytes = PyUnicode_AsUTF8String(class_name);
	if (bytes) {
		const char *plain = PyBytes_AsString(bytes);

		plain += strspn(plain, "_");
		if (*plain &&
		    snprintf(mangled, sizeof(mangled), "_%s%s", plain, name) < (int)sizeof(mangled))
			value = class_lookup(class, mangled);
	}
	Py_XDECREF(class_name);
	Py_XDECREF(bytes);
	return value;
}

/* Looks a private name up in a class and its bases, each of which mangles it its own way. */
static PyObject *mangled_lookup(PyObject *class, const char *name)
{
	size_t length = strlen(name);
	PyObject *mro, *value = NULL;
	Py_ssize_t i;

	if (strncmp(name, "__", 2) != 0 || strcmp(name + length - 2, "__") == 0)
		return NULL;
	mro = get(type_mro, class);
	for (i = 0; mro && PyTuple_Check(mro) && !value && i < PyTuple_Size(mro); i++) {
		value = mangled_lookup_in(PyTuple_GetItem(mro, i), name);
		if (PyErr_Occurred())
			break;
	}
	Py_XDECREF(mro);
	return value;
}

static int property_part(const char *name)
{
	static const char *const names[] = { "fget", "fset", "fdel", "getter", "setter", "deleter" };
	int i;

	for (i = 0; i < 6; i++)
		if (strcmp(name, names[i]) == 0)
			return i % 3;
	return -1;
}

/* Whether a class attribute comes before the instance's own: 1, 0, or -1 with an exception set. */
static int is_data_descriptor(PyObject *object)
{
	static const char *const names[] = { "__set__", "__delete__" };
	int i;

	for (i = 0; i < 2; i++) {
		PyObject *method = class_lookup((PyObject *)Py_TYPE(object), names[i]);

		Py_XDECREF(method);
		if (method)
			return 1;
	}
	return PyErr_Occurred() ? -1 : 0;
}

/* Looks a name up in an instance, as inspect.getattr_static does. */
static PyObject *instance_lookup(PyObject *object, const char *name)
{
	PyObject *class_value = class_lookup((PyObject *)Py_TYPE(object), name), *value;

	if (class_value && is_c_descriptor(class_value)) {
		Py_DECREF(class_value);
		return instance_slot(object, name);
	}
	if (PyErr_Occurred() || (class_value && is_data_descriptor(class_value)))
		return class_value;
	value = instance_dict_lookup(object, name);
	if (!value)
		return PyErr_Occurred() ? NULL : class_value;
	Py_XDECREF(class_value);
	return value;
}

/* One step along a qualified name. A new reference, or NULL with or without exception. */
static PyObject *step(PyObject *object, const char *name)
{
	PyObject *value;

	if (PyModule_Check(object)) {
		value = PyDict_GetItemString(PyModule_GetDict(object), name);
		Py_XINCREF(value);
		return value;
	}
	if (PyType_Check(object)) {
		value = class_lookup(object, name);
		if (!value && !PyErr_Occurred())
			value = mangled_lookup(object, name);
		if (!value && !PyErr_Occurred()) /* a method of the metaclass */
			value = class_lookup((PyObject *)Py_TYPE(object), name);
		return value;
	}
	if (is_instance(object, property_type) && property_part(name) >= 0)
		return get(property_parts[property_part(name)], object);
	return instance_lookup(object, name);
}

/* A class of functools, if that has been imported. Borrowed. */
static PyObject *functools(const char *name)
{
	PyObject *module = PyDict_GetItemString(PyImport_GetModuleDict(), "functools");

	return module && PyModule_Check(module) ?
		       PyDict_GetItemString(PyModule_GetDict(module), name) :
		       NULL;
}

/* The next thing under a decorator; NULL without exception when there is none. */
static PyObject *unwrap(PyObject *object)
{
	static const char *const holders[] = { "partialmethod", "cached_property",
					       "singledispatchmethod" };
	PyObject *inner, *type;
	size_t i;

	if (is_instance(object, staticmethod_type))
		return get(static_func, object);
	if (is_instance(object, classmethod_type))
		return get(class_func, object);
	if (is_instance(object, property_type))
		return get(property_parts[0], object);
	if (is_instance(object, method_type))
		return get(method_func, object);
	if (PyType_Check(object) || PyModule_Check(object))
		return NULL;
	type = functools("partial");
	if (type && PyType_Check(type) && is_instance(object, type))
		return instance_slot(object, "func");
	for (i = 0; i < sizeof(holders) / sizeof(*holders); i++) {
		type = functools(holders[i]);
		if (type && PyType_Check(type) && is_instance(object, type))
			return instance_dict_lookup(object, "func");
	}
	/* functools.wraps and lru_cache keep it in the dictionary, wrapt's C wrappers in a slot */
	inner = instance_dict_lookup(object, "__wrapped__");
	if (!inner && !PyErr_Occurred())
		inner = instance_slot(object, "__wrapped__");
	return inner;
}

/* Follows decorators to what is innermost: None where they lead nowhere. Takes the reference over. */
static PyObject *innermost(PyObject *object)
{
	int i;

	for (i = 0; object && i < MAX_WRAPPERS; i++) {
		PyObject *inner = unwrap(object);

		if (!inner && !PyErr_Occurred())
			return object;
		Py_DECREF(object);
		object = inner;
	}
	if (object) { /* in a circle */
		Py_DECREF(object);
		object = Py_None;
		Py_IncRef(object);
	}
	return object;
}

static enum sca_status not_function(struct sca_reading *r, PyObject *object)
{
	const char *builtin = strcmp(r->module, "builtins") == 0 ? "a built-in" : "a C function";
	PyObject *name = NULL, *bytes = NULL;

	if (PyType_Check(object)) {
		sca_explain(r->reason,
			    "%s:%s is a class: name one of its methods, such as %s.__init__",
			    r->module, r->qualname, r->qualname);
		return SCA_NOT_FUNCTION;
	}
	if (PyModule_Check(object)) {
		sca_explain(r->reason, "%s:%s is a module", r->module, r->qualname);
		return SCA_NOT_FUNCTION;
	}
	name = sca_type_name((PyObject *)Py_TYPE(object));
	if (name && PyUnicode_Check(name))
		bytes = PyUnicode_AsUTF8String(name);
	if (PyCFunction_Check(object) || (bytes && (strstr(PyBytes_AsString(bytes), "descriptor") ||
						    strstr(PyBytes_AsString(bytes), "wrapper"))))
		sca_explain(r->reason, "%s:%s is %s, which has no bytecode to patch", r->module,
			    r->qualname, builtin);
	else
		sca_explain(r->reason, "%s:%s is not a Python function but of type %s", r->module,
			    r->qualname, bytes ? PyBytes_AsString(bytes) : "unknown");
	Py_XDECREF(name);
	Py_XDECREF(bytes);
	PyErr_Clear();
	return SCA_NOT_FUNCTION;
}

/* Whether a module's code is running for the first time now, so that names may be missing still. */
static int is_initializing(PyObject *module)
{
	PyObject *spec = NULL, *flag = NULL;
	int initializing;

	if (PyModule_Check(module))
		spec = PyDict_GetItemString(PyModule_GetDict(module), "__spec__");
	if (spec)
		flag = instance_dict_lookup(spec, "_initializing");
	initializing = flag == Py_True;
	Py_XDECREF(flag);
	PyErr_Clear();
	return initializing;
}

static int named(PyObject *code, const char *name, const char *prefix, const char *suffix)
{
	PyObject *co_name = PyObject_GetAttrString(code, "co_name");
	PyObject *bytes = co_name ? PyUnicode_AsUTF8String(co_name) : NULL;
	const char *text = bytes ? PyBytes_AsString(bytes) : "";
	size_t p = strlen(prefix), n = strlen(name);
	int same = strncmp(text, prefix, p) == 0 && strncmp(text + p, name, n) == 0 &&
		   strcmp(text + p + n, suffix) == 0;

	Py_XDECREF(co_name);
	Py_XDECREF(bytes);
	PyErr_Clear();
	return same;
}

/*
 * Finds the one code object of that name among the constants of code. Generic functions (PEP 695) lie
 * within another code object, which the compiler names after them. Returns how many there are.
 */
static int find_nested(PyObject *code, const char *name, struct sca_reading *r, PyObject **found)
{
	PyObject *consts = PyObject_GetAttrString(code, "co_consts");
	Py_ssize_t i, n = consts ? PyTuple_Size(consts) : 0;
	int count = 0, depth = r->depth, found_depth = depth;
	uint32_t path[SCA_MAX_NESTING];

	for (i = 0; i < n && depth < SCA_MAX_NESTING; i++) {
		PyObject *item = PyTuple_GetItem(consts, i);
		int direct;

		if ((PyObject *)Py_TYPE(item) != code_type)
			continue;
		direct = named(item, name, "", "");
		if (!direct && !named(item, name, "<generic parameters of ", ">"))
			continue;
		r->depth = depth;
		r->path[r->depth++] = (uint32_t)i;
		if (direct)
			*found = item;
		else if (!(direct = find_nested(item, name, r, found)))
			continue;
		count += direct;
		memcpy(path, r->path, sizeof(path));
		found_depth = r->depth;
	}
	r->depth = depth;
	if (count > 0) {
		memcpy(r->path, path, sizeof(path));
		r->depth = found_depth;
	}
	Py_XDECREF(consts);
	return count;
}

static int is_function_code(PyObject *code)
{
	PyObject *flags = PyObject_GetAttrString(code, "co_flags");
	int is = flags && (PyLong_AsLong(flags) & 0x2); /* CO_NEWLOCALS, which a class body lacks */

	Py_XDECREF(flags);
	return is;
}

/* Follows names through the constants of a function's code. rest is what stands after "<locals>": of a
 * function what is in it is named after another "<locals>", of a class directly. */
static enum sca_status resolve_nested(struct sca_reading *r, PyObject *function, char *rest)
{
	PyObject *found = NULL;
	int in_function = 0; /* the first "<locals>" is behind us */
	char *part;

	r->code = PyObject_GetAttrString(function, "__code__");
	if (!r->code)
		return sca_failed(r->reason, "reading the code object");
	r->function = function;
	Py_IncRef(function);
	while ((part = strsep(&rest, "."))) {
		int locals = strcmp(part, "<locals>") == 0, count;

		if (locals && in_function) {
			in_function = 0;
			continue;
		}
		count = locals || in_function ? 0 : find_nested(r->code, part, r, &found);
		if (count != 1) {
			sca_explain(r->reason, "%s:%s is the name of %d functions, not of one",
				    r->module, r->qualname, count);
			return SCA_NOT_FOUND;
		}
		Py_IncRef(found);
		Py_DECREF(r->code);
		r->code = found;
		in_function = is_function_code(found);
	}
	if (r->depth == 0 || !in_function) {
		sca_explain(r->reason, "%s:%s is no function: name what is in it", r->module,
			    r->qualname);
		return r->depth == 0 ? SCA_NOT_FOUND : SCA_NOT_FUNCTION;
	}
	return SCA_OK;
}

static enum sca_status walk(struct sca_reading *r, PyObject *module)
{
	PyObject *object = module;
	char *names = strdup(r->qualname), *rest = names, *part = NULL;
	enum sca_status status;

	if (!names) {
		PyErr_NoMemory();
		return sca_failed(r->reason, "looking the name up");
	}
	Py_IncRef(object);
	while (object && (part = strsep(&rest, ".")) && strcmp(part, "<locals>") != 0) {
		PyObject *next = step(object, part);

		if (!next && !PyErr_Occurred()) {
			int early = is_initializing(module);

			sca_explain(r->reason,
				    early ? "module %s is being imported and has no %s yet" :
					    "%s has no attribute %s on the way to %s",
				    r->module, part, r->qualname);
			status = early ? SCA_NOT_IMPORTED : SCA_NOT_FOUND;
			Py_DECREF(object);
			free(names);
			return status;
		}
		Py_DECREF(object);
		object = next;
	}
	if (object)
		object = innermost(object);
	if (!object)
		status = sca_failed(r->reason, "looking the name up");
	else if (!is_instance(object, function_type)) {
		status = not_function(r, object);
		if (part) /* nothing has locals but a function */
			status = SCA_NOT_FOUND;
	} else if (part) {
		status = resolve_nested(r, object, rest ? rest : "");
	} else {
		r->code = PyObject_GetAttrString(object, "__code__");
		r->function = object;
		Py_IncRef(object);
		status = r->code ? SCA_OK : sca_failed(r->reason, "reading the code object");
	}
	Py_XDECREF(object);
	free(names);
	return status;
}

/* Whether the code is the import system's, which the engine itself stands on. */
static int is_bootstrap(PyObject *code)
{
	PyObject *file = PyObject_GetAttrString(code, "co_filename");
	PyObject *bytes = file ? PyUnicode_AsUTF8String(file) : NULL;
	int bootstrap = bytes && strncmp(PyBytes_AsString(bytes), "<frozen importlib._bootstrap",
					 strlen("<frozen importlib._bootstrap")) == 0;

	Py_XDECREF(file);
	Py_XDECREF(bytes);
	PyErr_Clear();
	return bootstrap;
}

enum sca_status sca_resolve(struct sca_reading *r, int internal)
{
	PyObject *modules = PyImport_GetModuleDict();
	PyObject *module = modules ? PyDict_GetItemString(modules, r->module) : NULL;
	enum sca_status status;

	if (!module) {
		sca_explain(r->reason, "module %s is not imported", r->module);
		return SCA_NOT_IMPORTED;
	}
	Py_IncRef(module);
	status = walk(r, module);
	Py_DECREF(module);
	if (PyErr_Occurred()) /* memory ran out on the way: what was not found may be there */
		status = sca_failed(r->reason, "looking the name up");
	if (status == SCA_OK && !internal && is_bootstrap(r->code)) {
		sca_explain(r->reason,
			    "%s:%s belongs to the frozen import system, which the engine stands on",
			    r->module, r->qualname);
		status = SCA_NOT_FUNCTION;
	}
	return status;
}
